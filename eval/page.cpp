#include "eval/page.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "engine/core/format.h"

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

// Colours by name (--ink, --a), light or dark as the reader's system is, as the style of what `selector` picks.
std::string colours_css(const std::string& selector) {
  return selector +
         " { color-scheme: light dark; --ink: #1c2330; --dim: #667085; --line: #d8dde6; --paper: #fff; --card: "
         "#f6f8fb; "
         "--a: #2563eb; --b: #d97706; --c: #059669; --d: #9333ea; }\n@media (prefers-color-scheme: dark) { " +
         selector +
         " { --ink: #e6e9ef; --dim: #98a2b3; --line: #313a49; --paper: #12161d; --card: #1a202a; --a: #6ea8fe; "
         "--b: #f5a742; --c: #34d399; --d: #c084fc; } }\n";
}

}  // namespace

std::string html_text(const std::string& text) {
  std::string safe;
  for (const char c : text)
    safe += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '"' ? "&quot;" : std::string(1, c);
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

std::string html_page(const std::string& title, const std::string& body) {
  return "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<title>" + html_text(title) +
         "</title>\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<style>" +
         colours_css(":root") + kStyle + "</style></head>\n<body>\n" + body + "</body></html>\n";
}

// ---- Charts ---------------------------------------------------------------------------------------------------------

namespace {

const char* const kColours = "abcd";  // custom properties of the page

std::string colour(size_t series) { return format("var(--%s)", std::string(1, kColours[series % 4])); }

// From values to pixels.
class Axis {
 public:
  Axis(double low, double high, double from, double to) : from_(from), to_(to) {
    log_ = low > 1e-30 && high > 8 * low;
    // Values that differ in their last digits alone are one.
    const bool apart = high - low > 1e-6 * std::max(std::abs(low), std::abs(high));
    const double margin = log_ ? 0 : 0.05 * (apart ? high - low : std::abs(high) + 1);
    low_ = log_ ? low / 1.1 : low - margin;
    high_ = log_ ? high * 1.1 : high + margin;
  }
  double at(double value) const {
    const double share = log_ ? std::log(value / low_) / std::log(high_ / low_) : (value - low_) / (high_ - low_);
    return from_ + (to_ - from_) * std::clamp(share, 0.0, 1.0);
  }
  // At steps of 1, 2 or 5 times a power of ten, about five of them.
  std::vector<double> ticks() const {
    std::vector<double> ticks;
    if (log_) {
      for (double power = std::pow(10, std::floor(std::log10(low_))); power < high_; power *= 10)
        for (const double digit : {1, 2, 5})
          if (digit * power >= low_ && digit * power <= high_) ticks.push_back(digit * power);
      return ticks;
    }
    const double rough = (high_ - low_) / 5, power = std::pow(10, std::floor(std::log10(rough)));
    const double step = power * (rough < 1.5 * power ? 1 : rough < 3.5 * power ? 2 : rough < 7.5 * power ? 5 : 10);
    const double first = std::ceil(low_ / step);
    for (int t = 0; t < 20 && (first + t) * step <= high_; ++t) ticks.push_back((first + t) * step + 0.0);  // no -0
    return ticks;
  }

 private:
  double from_, to_, low_, high_;
  bool log_;
};

std::string text_at(double x, double y, const std::string& text, const char* anchor, const char* fill) {
  return format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"var(--%s)\">", x, y, anchor, fill) +
         html_text(text) + "</text>\n";
}

std::string line(double x1, double y1, double x2, double y2, const std::string& stroke, double width) {
  return format("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"%.1f\"/>\n", x1, y1,
                x2, y2, stroke, width);
}

std::string dot(double x, double y, size_t series, const std::string& title) {
  return format("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"><title>", x, y, colour(series)) +
         html_text(title) + "</title></circle>\n";
}

std::string legend_at(double x, double y, const std::vector<std::string>& legend) {
  std::string svg;
  for (size_t s = 0; legend.size() > 1 && s < legend.size(); ++s) {
    svg += dot(x, y - 4, s, legend[s]) + text_at(x + 10, y, legend[s], "start", "ink");
    x += 36 + 7.5 * static_cast<double>(legend[s].size());
  }
  return svg;
}

std::string frame(double width, double height, const std::string& inside) {
  return format(
             "<svg viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" font-family=\"system-ui, sans-serif\" font-size=\"13\" "
             "role=\"img\">\n",
             width, height, width) +
         inside + "</svg>\n";
}

}  // namespace

std::string dot_chart(const std::vector<ChartRow>& rows, const std::vector<std::string>& legend,
                      const std::string& unit) {
  constexpr double kWidth = 820, kLeft = 240, kRight = 660, kTop = 26, kRow = 22;
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const ChartRow& row : rows)
    for (const Mark& mark : row.marks) {
      const bool positive = mark.value - mark.error > 0;
      low = std::min(low, positive ? mark.value - mark.error : mark.value);
      high = std::max(high, mark.value + mark.error);
    }
  if (!(low <= high)) return "";
  const Axis axis(low, high, kLeft, kRight);
  const double bottom = kTop + kRow * static_cast<double>(rows.size());
  std::string svg = legend_at(kLeft, 14, legend);
  for (const double tick : axis.ticks())
    svg += line(axis.at(tick), kTop, axis.at(tick), bottom, "var(--line)", 1) +
           text_at(axis.at(tick), bottom + 16, format("%g", tick), "middle", "dim");
  svg += text_at(kRight + 12, bottom + 16, unit, "start", "dim");
  for (size_t r = 0; r < rows.size(); ++r) {
    const double y = kTop + kRow * (static_cast<double>(r) + 0.5);
    svg += text_at(kLeft - 10, y + 4, rows[r].label, "end", "ink") +
           text_at(kRight + 12, y + 4, rows[r].text, "start", "ink");
    for (const Mark& mark : rows[r].marks) {
      if (mark.error > 0)
        svg += line(axis.at(mark.value - mark.error), y, axis.at(mark.value + mark.error), y, colour(mark.series), 2);
      svg += dot(axis.at(mark.value), y, mark.series, rows[r].label + format(": %.4g", mark.value));
    }
  }
  return frame(kWidth, bottom + 24, svg);
}

std::string profile_chart(const std::vector<std::string>& names, const std::vector<std::vector<double>>& series,
                          const std::vector<std::string>& legend, const std::string& unit) {
  constexpr double kWidth = 820, kHeight = 300, kLeft = 60, kTop = 26, kBottom = 280;
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const std::vector<double>& values : series)
    for (const double value : values)
      if (std::isfinite(value)) low = std::min(low, value), high = std::max(high, value);
  if (!(low <= high)) return "";
  const Axis y(std::min(low, 0.0), high, kBottom, kTop);
  std::string svg = legend_at(kLeft, 14, legend);
  for (const double tick : y.ticks())
    svg += line(kLeft, y.at(tick), kWidth, y.at(tick), "var(--line)", 1) +
           text_at(kLeft - 8, y.at(tick) + 4, format("%g", tick), "end", "dim");
  svg += text_at(kLeft - 8, 14, unit, "end", "dim");
  const double step = (kWidth - kLeft - 20) / static_cast<double>(std::max<size_t>(names.size(), 1));
  for (size_t s = 0; s < series.size(); ++s)
    for (size_t i = 0; i < series[s].size(); ++i)
      if (std::isfinite(series[s][i]))
        svg += dot(kLeft + 10 + step * (static_cast<double>(i) + 0.5), y.at(series[s][i]), s,
                   names[i] + format(", %s: %.4g", legend[s], series[s][i]));
  return frame(kWidth, kHeight, svg);
}

std::string histogram_chart(double lo, double hi, const std::vector<double>& counts,
                            const std::vector<double>& levels) {
  constexpr double kWidth = 820, kLeft = 60, kRight = 800, kTop = 12, kBottom = 170, kLevels = 182;
  if (counts.empty() || !(lo <= hi)) return "";
  const double most = *std::max_element(counts.begin(), counts.end());
  const Axis x(std::min(lo, 0.0), std::max(hi, 0.0), kLeft, kRight);
  const auto top = [&](double count) {
    return count > 0 ? kBottom - 6 - (kBottom - 6 - kTop) * std::log(count) / std::log(std::max(most, 2.0)) : kBottom;
  };
  std::string svg;
  for (const double tick : x.ticks())
    svg += line(x.at(tick), kTop, x.at(tick), kLevels + 8, "var(--line)", 1) +
           text_at(x.at(tick), kLevels + 22, format("%g", tick), "middle", "dim");
  const double step = (hi - lo) / static_cast<double>(counts.size());
  for (size_t i = 0; i < counts.size(); ++i) {
    const double from = x.at(lo + step * static_cast<double>(i)), to = x.at(lo + step * static_cast<double>(i + 1));
    svg += format(
        "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"><title>%g to %g: %.0f"
        "</title></rect>\n",
        from, top(counts[i]), std::max(1.0, to - from - 1), kBottom - top(counts[i]), colour(0),
        lo + step * static_cast<double>(i), lo + step * static_cast<double>(i + 1), counts[i]);
  }
  svg += line(kLeft, kBottom, kRight, kBottom, "var(--dim)", 1);
  for (const double level : levels)
    svg += format("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"><title>%g</title></line>\n",
                  x.at(level), kBottom + 2, x.at(level), kLevels + 6, colour(1), level);
  return frame(kWidth, kLevels + 30, svg);
}

std::string svg_file(const std::string& chart) {
  const size_t after_tag = chart.find('\n') + 1;
  std::string file = "<svg xmlns=\"http://www.w3.org/2000/svg\"" + chart.substr(4, after_tag - 4);
  return file + "<style>" + colours_css("svg") + "</style>\n" + chart.substr(after_tag);
}

}  // namespace bcq
