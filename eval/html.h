// Pages for people: one self-contained HTML file, readable without a network.
#pragma once
#include <string>

namespace bcq {

// Text as HTML shows it.
std::string html_text(const std::string& text);
// A JPEG, PNG, GIF or BMP file as the value of src="...".
std::string image_uri(const std::string& bytes);
// Colours by name (--ink, --a), light or dark as the reader's system is, as the style of what `selector` picks.
std::string colours_css(const std::string& selector);
// A whole page in these colours. `body` is HTML.
std::string html_page(const std::string& title, const std::string& body);

}  // namespace bcq
