// Which layer hurts, and what compensation gives back there.
#pragma once
#include <string>

#include "eval/run.h"

namespace bcq {

// CSV when `path` ends in .csv, else JSON.
// Of a vision model, one row an output: mean squared error before and after compensation, signal-to-noise ratios in dB
// (10 log10 of signal over error; without error: null), and for products the grids of both operands and the seconds
// their search took; in JSON, a histogram of the left operand, too, and the levels its values are rounded to. Of a
// language model GPTQ's layers: the mean squared output errors of a LayerRecord.
void write_layer_report(const std::string& path, const Outcome& outcome);

// "error over signal of 24 layers, dB: rounded -20.1, GPTQ -23.5, with the bias -24.8, refined -25.0; ..." on the
// calibration data, geometric means; "" when no solver ran.
std::string certificate_text(const CalibrationResult& result);

}  // namespace bcq
