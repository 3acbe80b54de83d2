// Pages for people: one self-contained HTML file, readable without a network. And charts as inline SVG, coloured by the
// page they stand in or, in a file of their own, by themselves.
#pragma once
#include <string>
#include <vector>

namespace bcq {

// Text as HTML shows it.
std::string html_text(const std::string& text);
// A JPEG, PNG, GIF or BMP file as the value of src="...".
std::string image_uri(const std::string& bytes);
// A whole page, light or dark as the reader's system is. `body` is HTML.
std::string html_page(const std::string& title, const std::string& body);

struct Mark {
  double value = 0, error = 0;  // one standard error; 0: none is drawn
  size_t series = 0;            // its colour, by the legend
};
struct ChartRow {
  std::string label;
  std::vector<Mark> marks;
  std::string text;  // at the right
};

// A dot with an error bar for every mark, one row under the other. The axis is logarithmic where all values are
// positive and the largest is more than 8 times the smallest. "" without a mark.
std::string dot_chart(const std::vector<ChartRow>& rows, const std::vector<std::string>& legend,
                      const std::string& unit);

// Series of values over the same names, from left to right; NaN: a gap. Each dot tells its name and value to a pointer.
std::string profile_chart(const std::vector<std::string>& names, const std::vector<std::vector<double>>& series,
                          const std::vector<std::string>& legend, const std::string& unit);

// How often values lie in each of equal parts of [lo, hi], on a logarithmic scale, and below it the levels they are
// rounded to.
std::string histogram_chart(double lo, double hi, const std::vector<double>& counts, const std::vector<double>& levels);

// A chart as a file.
std::string svg_file(const std::string& chart);

}  // namespace bcq
