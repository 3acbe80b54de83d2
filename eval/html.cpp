#include "eval/html.h"

#include <cstdint>

namespace bcq {
namespace {

const char* const kStyle = R"(
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 70rem; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } .dim { color: var(--dim); }
.scroll { overflow-x: auto; } svg { display: block; } table { border-collapse: collapse; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.card { display: flex; flex-wrap: wrap; gap: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; padding: .8rem; margin: .8rem 0; }
.card img { width: 224px; max-width: 100%; height: auto; object-fit: contain; align-self: flex-start; }
.classes { flex: 1 1 16rem; min-width: 0; } .classes h3 { margin: 0 0 .4rem; font-size: 1rem; }
.row { margin: .25rem 0; } .row span { float: right; font-variant-numeric: tabular-nums; }
.bar { height: .5rem; background: var(--line); border-radius: .25rem; clear: both; overflow: hidden; }
.bar div { height: 100%; background: var(--a); } .bar.second div { background: var(--b); }
)";

}  // namespace

std::string html_text(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    if (c == '&')
      safe += "&amp;";
    else if (c == '<')
      safe += "&lt;";
    else if (c == '>')
      safe += "&gt;";
    else if (c == '"')
      safe += "&quot;";
    else
      safe += c;
  }
  return safe;
}

std::string image_uri(const std::string& bytes) {
  static const char* const kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const char first = bytes.empty() ? '\0' : bytes[0];
  std::string uri = std::string("data:image/") +
                    (first == 'G'      ? "gif"
                     : first == 'B'    ? "bmp"
                     : first == '\x89' ? "png"
                                       : "jpeg") +
                    ";base64,";
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t word = 0;
    for (size_t k = 0; k < 3; ++k) word = word << 8 | (i + k < bytes.size() ? static_cast<uint8_t>(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k) uri += i + k <= bytes.size() ? kDigits[word >> (18 - 6 * k) & 63] : '=';
  }
  return uri;
}

std::string colours_css(const std::string& selector) {
  return selector +
         " { color-scheme: light dark; --ink: #1c2330; --dim: #667085; --line: #d8dde6; --paper: #fff; --card: "
         "#f6f8fb; "
         "--a: #2563eb; --b: #d97706; --c: #059669; --d: #9333ea; }\n@media (prefers-color-scheme: dark) { " +
         selector +
         " { --ink: #e6e9ef; --dim: #98a2b3; --line: #313a49; --paper: #12161d; --card: #1a202a; --a: #6ea8fe; "
         "--b: #f5a742; --c: #34d399; --d: #c084fc; } }\n";
}

std::string html_page(const std::string& title, const std::string& body) {
  return "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<title>" + html_text(title) +
         "</title>\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<style>" +
         colours_css(":root") + kStyle + "</style></head>\n<body>\n" + body + "</body></html>\n";
}

}  // namespace bcq
