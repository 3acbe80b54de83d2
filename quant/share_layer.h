// What one rank fitted of a layer, given to the others.
#pragma once
#include "engine/nn/layer.h"

namespace bcq {

// The grids and the rounded weight of a layer as rank `from` has them, in all ranks: a layer that is packed, or
// compensated, is not for this.
void share_layer(Layer& layer, int from);

}  // namespace bcq
