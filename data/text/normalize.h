// Unicode normalization of text before it is tokenized.
#pragma once
#include <functional>
#include <string>
#include <string_view>

namespace bcq {

// Normalization form C: characters that Unicode says are the same are written the same, as few as possible (Unicode
// Standard Annex 15). By utf8proc, of its Unicode version; the tokenizers library knows no combining marks newer than
// Unicode 9 and leaves those as they stand. `utf8` has to be valid.
std::string nfc(std::string_view utf8);

// A step of what is done to a text before it is tokenized.
using Normalizer = std::function<std::string(std::string_view utf8)>;

}  // namespace bcq
