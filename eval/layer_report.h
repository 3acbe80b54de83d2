// Which layer hurts, and what compensation gives back there.
#pragma once
#include <string>
#include <vector>

#include "engine/json.h"
#include "quant/bias_comp.h"

namespace bcq {

// A grid as JSON: kind, bits and its intervals; long lists of intervals are given in full.
json describe(const Grid& grid);

// Write one row a site: mean squared output error before and after compensation, signal-to-noise ratios in
// dB (10 log10 of signal over error; infinite without error: null) and the grids of both operands. CSV when
// `path` ends in .csv, else JSON. `before` and `after` are site_errors() of the same model.
void write_layer_report(const std::string& path, const std::vector<SiteReport>& before,
                        const std::vector<SiteReport>& after);

}  // namespace bcq
