// Just enough JSON to read the text of a model specification.
#pragma once

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace cace_fast {

class JsonError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  ~JsonError() override;  // out of line: see engine.h
};

// One value of a JSON text.  Access as another type, or to a missing key, throws JsonError.
class Json {
 public:
  enum Kind { null, boolean, number, string, array, object };

  static Json parse(const std::string& text);

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == null; }
  bool truth() const;
  double real() const;
  int integer() const;
  const std::string& text() const;
  const std::vector<Json>& items() const;
  const Json& at(const char* key) const;
  const std::map<std::string, Json>& members() const;
  bool operator==(const Json& other) const;

 private:
  friend class JsonReader;
  Kind kind_ = null;
  double number_ = 0.0;
  std::string string_;
  std::vector<Json> items_;
  std::map<std::string, Json> members_;
};

}  // namespace cace_fast
