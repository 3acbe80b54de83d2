// Which layer hurts, and what compensation gives back there.
#pragma once
#include <string>
#include <vector>

#include "engine/file/json.h"
#include "quant/bias_comp.h"
#include "quant/calibrate.h"
#include "quant/ptq4vit.h"

namespace bcq {

// A grid as JSON: kind, bits and its intervals; long lists of intervals are given in full.
json describe(const Grid& grid);

// Write one row an output: mean squared error before and after compensation, signal-to-noise ratios in dB
// (10 log10 of signal over error; without error: null), and for products the grids of both operands and the seconds
// their search took. CSV when `path` ends in .csv, else JSON. `before` and `after` are output_errors() of the same
// model.
void write_layer_report(const std::string& path, const std::vector<OutputError>& before,
                        const std::vector<OutputError>& after, const PtqCost& cost);

// The same of GPTQ's layers: the mean squared output errors of a LayerRecord, each with a name that says of what.
void write_layer_report(const std::string& path, const CalibrationResult& result);

}  // namespace bcq
