// The levels of a table grid (engine/grid/table.h), chosen exactly.
#pragma once
#include <cstdint>
#include <vector>

namespace bcq {

// The at most 2^bits codes, rising, for which Σ_u histogram[u] (u - nearest level)² is least; 1 to 8 bits, up to 256
// bins of weights that are not negative. By dynamic programming over where the values of a level end: of all
// thresholds and integer levels the best there are. (Bruce, "Optimum quantization", 1965)
std::vector<uint8_t> best_levels(const std::vector<double>& histogram, int bits);

// That sum for any levels.
double levels_error(const std::vector<double>& histogram, const std::vector<uint8_t>& levels);

}  // namespace bcq
