// Native model files: safetensors with the specification in the metadata.
#include <cstring>
#include <fstream>

#include "error.h"
#include "model.h"

namespace cace_fast {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // as in the format's own readers

// Numbers of one tensor, given its entry in the header and all data behind the header.
Numbers numbers(const Json& entry, const std::string& data) {
  const auto& ends = entry.at("data_offsets").items();
  const double first = ends.at(0).real(), end = ends.at(1).real();
  if (!(0 <= first && first <= end && end <= double(data.size())))
    throw Invalid("model file", "tensors inside the file", "one outside");
  const char* from = data.data() + size_t(first);
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

ModelFile read_model_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Invalid("model file", "one that can be read", path);
  unsigned char length_bytes[8];
  in.read(reinterpret_cast<char*>(length_bytes), 8);
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | length_bytes[i];  // little endian
  if (!in || length > kMaxHeader) throw Invalid("model file", "safetensors", path);
  std::string header(length, '\0');
  in.read(header.data(), std::streamsize(length));
  if (!in) throw Invalid("model file", "a whole header", path + ", which ends in it");
  const std::string data((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const Json content = Json::parse(header);
  ModelFile file;
  file.spec_json = content.at("__metadata__").at("cace_fast").text();
  for (const auto& [name, entry] : content.members())
    if (name != "__metadata__") file.tensors[name] = numbers(entry, data);
  return file;
}

}  // namespace cace_fast
