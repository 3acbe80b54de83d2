// What is shown of result records: their fields as numbers and texts, and what their rows are called.
#pragma once
#include <string>

#include "engine/file/json_fwd.h"

namespace bcq {

// A field of a record: NaN where it is no number; "" where there is none, JSON where it is no text.
double number_in(const json& record, const char* key);
std::string text_in(const json& record, const char* key);
// A number with so many decimals, "" for NaN and infinity.
std::string number_text(double x, int decimals);

// Results are of imagenet (top-1) and of perplexity.
bool is_vision(const json& record);
bool is_result(const json& record);
// "ptq4vit W4A4 + BC (position)", "gptq 3 bit g128".
std::string label_of(const json& record);

}  // namespace bcq
