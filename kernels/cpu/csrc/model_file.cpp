// Native model files: safetensors with the specification in the metadata.
#include <cstdint>
#include <cstring>
#include <fstream>
#include <ios>
#include <iterator>
#include <string>
#include <vector>

#include "error.h"
#include "json.h"
#include "model.h"

namespace cace_fast {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // as in the format's own readers

// Numbers of one tensor, given its entry in the header and all data behind the header.
Numbers numbers(const Json& entry, const char* data, size_t size) {
  const auto& ends = entry.at("data_offsets").items();
  if (ends.size() != 2)
    throw Invalid("model file", "two offsets of a tensor", std::to_string(ends.size()));
  const double first = ends.at(0).real(), end = ends.at(1).real();
  if (!(0 <= first && first <= end && end <= double(size)))
    throw Invalid("model file", "tensors inside the file", "one outside");
  const char* from = data + size_t(first);
  const size_t bytes = size_t(end - first);
  const std::string& dtype = entry.at("dtype").text();
  if (dtype == "F64") {
    Numbers out(bytes / sizeof(double));
    std::memcpy(out.data(), from, out.size() * sizeof(double));
    return out;
  }
  if (dtype != "F32") throw Unsupported("tensors of type " + dtype);
  std::vector<float> raw(bytes / sizeof(float));
  std::memcpy(raw.data(), from, raw.size() * sizeof(float));
  return Numbers(raw.begin(), raw.end());
}

}  // namespace

ModelFile read_model_bytes(const char* bytes, size_t size, const std::string& name) {
  uint64_t length = 0;
  for (int i = 7; i >= 0 && size >= 8; --i)  // little endian
    length = length << 8 | static_cast<unsigned char>(bytes[i]);
  if (size < 8 || length > kMaxHeader) throw Invalid("model file", "safetensors", name);
  if (length > size - 8) throw Invalid("model file", "a whole header", name + ", which ends in it");
  const Json content = Json::parse(std::string(bytes + 8, size_t(length)));
  const char* data = bytes + 8 + length;
  ModelFile file;
  file.spec_json = content.at("__metadata__").at("cace_fast").text();
  for (const auto& [tensor, entry] : content.members())
    if (tensor != "__metadata__") file.tensors[tensor] = numbers(entry, data, size - 8 - length);
  return file;
}

ModelFile read_model_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Invalid("model file", "one that can be read", path);
  const std::string all((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  return read_model_bytes(all.data(), all.size(), path);
}

}  // namespace cace_fast
