#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <system_error>
#include <vector>
#ifndef __cpp_lib_to_chars  // of numbers with a point, which come late to some libraries
#include <locale>
#include <sstream>
#endif

namespace cace_fast {

JsonError::~JsonError() = default;

class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : text_(text) {}

  Json document() {
    Json value = read(0);
    skip_space();
    if (at_ != text_.size()) fail("text after the end");
    return value;
  }

 private:
  static constexpr int kMaxDepth = 64;  // specifications nest less than ten deep

  [[noreturn]] void fail(const char* what) const {
    throw JsonError(std::string("JSON: ") + what + " at byte " + std::to_string(at_));
  }

  void skip_space() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_])) ++at_;
  }

  char peek() {
    skip_space();
    if (at_ >= text_.size()) fail("text ends early");
    return text_[at_];
  }

  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!take(c)) fail("unexpected character");
  }

  bool word(const char* w) {
    const size_t n = std::strlen(w);
    if (text_.compare(at_, n, w) != 0) return false;
    at_ += n;
    return true;
  }

  std::string read_string() {
    expect('"');
    std::string out;
    while (true) {
      if (at_ >= text_.size()) fail("string ends early");
      const char c = text_[at_++];
      if (c == '"') return out;
      if (c != '\\') {
        out += c;
        continue;
      }
      if (at_ >= text_.size()) fail("string ends early");
      read_escape(out);
    }
  }

  unsigned read_unit() {
    if (at_ + 4 > text_.size()) fail("escape ends early");
    unsigned code = 0;
    const char* first = text_.data() + at_;
    const auto [stop, error] = std::from_chars(first, first + 4, code, 16);
    if (error != std::errc() || stop != first + 4) fail("unknown escape");
    at_ += 4;
    return code;
  }

  // One escaped character; those beyond 16 bits are two escapes.
  unsigned read_code() {
    const unsigned high = read_unit();
    if (high < 0xd800 || high > 0xdbff || !word("\\u")) return high;
    const unsigned low = read_unit();
    if (low < 0xdc00 || low > 0xdfff) fail("half a character");
    return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
  }

  static void append_utf8(std::string& out, unsigned code) {
    if (code < 0x80) {
      out += char(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const unsigned lead[] = {0, 0xc0, 0xe0, 0xf0};
    out += char(lead[more] | code >> 6 * more);
    for (int k = more - 1; k >= 0; --k) out += char(0x80 | (code >> 6 * k & 0x3f));
  }

  void read_escape(std::string& out) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char c = text_[at_++];
    if (c == 'u') return append_utf8(out, read_code());
    const char* found = std::strchr(from, c);
    if (!found || !c) fail("unknown escape");
    out += to[found - from];
  }

  Json read(int depth) {
    if (depth > kMaxDepth) fail("nested too deeply");
    Json value;
    const char c = peek();
    if (c == '{') {
      read_object(value, depth);
    } else if (c == '[') {
      read_array(value, depth);
    } else if (c == '"') {
      value.kind_ = Json::string;
      value.string_ = read_string();
    } else if (word("true") || word("false")) {
      value.kind_ = Json::boolean;
      value.number_ = text_[at_ - 2] == 'u' ? 1.0 : 0.0;  // tr-u-e, fal-s-e
    } else if (!word("null")) {
      read_number(value);
    }
    return value;
  }

  // The decimal point is a point in every locale; strtod and streams would follow the locale.
  void read_number(Json& value) {
    const size_t end = std::min(text_.find_first_not_of("+-.0123456789eE", at_), text_.size());
    value.kind_ = Json::number;
#ifdef __cpp_lib_to_chars
    const char *first = text_.data() + at_, *last = text_.data() + end;
    const auto [stop, error] = std::from_chars(first, last, value.number_);
    const bool good = error == std::errc() && stop == last;
#else
    std::istringstream in(text_.substr(at_, end - at_));
    in.imbue(std::locale::classic());
    const bool good =
        bool(in >> value.number_) && in.peek() == std::istringstream::traits_type::eof();
#endif
    if (!good || !std::isfinite(value.number_)) fail("not a number");
    at_ = end;
  }

  void read_array(Json& value, int depth) {
    value.kind_ = Json::array;
    expect('[');
    if (take(']')) return;
    do value.items_.push_back(read(depth + 1));
    while (take(','));
    expect(']');
  }

  void read_object(Json& value, int depth) {
    value.kind_ = Json::object;
    expect('{');
    if (take('}')) return;
    do {
      peek();
      std::string key = read_string();
      expect(':');
      value.members_[key] = read(depth + 1);
    } while (take(','));
    expect('}');
  }

  const std::string& text_;
  size_t at_ = 0;
};

Json Json::parse(const std::string& text) { return JsonReader(text).document(); }

bool Json::truth() const {
  if (kind_ != boolean) throw JsonError("specification: expected true or false");
  return number_ != 0.0;
}

double Json::real() const {
  if (kind_ != number) throw JsonError("specification: expected a number");
  return number_;
}

int Json::integer() const {
  const double value = real();
  if (value != std::floor(value) || std::fabs(value) > 1e9)
    throw JsonError("specification: expected an integer");
  return static_cast<int>(value);
}

const std::string& Json::text() const {
  if (kind_ != string) throw JsonError("specification: expected text");
  return string_;
}

const std::vector<Json>& Json::items() const {
  if (kind_ != array) throw JsonError("specification: expected a list");
  return items_;
}

const std::map<std::string, Json>& Json::members() const {
  if (kind_ != object) throw JsonError("specification: expected an object");
  return members_;
}

bool Json::operator==(const Json& other) const {
  return kind_ == other.kind_ && number_ == other.number_ && string_ == other.string_ &&
         items_ == other.items_ && members_ == other.members_;
}

const Json& Json::at(const char* key) const {
  const auto found = members_.find(key);
  if (found == members_.end())
    throw JsonError(std::string("specification: missing field '") + key + "'");
  return found->second;
}

}  // namespace cace_fast
