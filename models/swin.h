// Swin Transformer as timm and Microsoft's repository define it ("Swin Transformer: Hierarchical Vision
// Transformer using Shifted Windows"): attention inside windows, shifted in every other block, with a learned
// bias for each relative position; between stages 2x2 patches are merged.
//
// Both layouts of timm's names are read: before 0.8 the merge stood at the end of a stage and the head
// was head.weight, since then at the start of the next stage and head.fc.weight.
#pragma once
#include "models/timm.h"

namespace bcq {

// Throws InputError.
std::unique_ptr<Model> load_swin(const VisionSource& source, const SafeTensors& file, ModelInfo info);

}  // namespace bcq
