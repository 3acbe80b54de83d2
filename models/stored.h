// What quantization made of a vision model, as named tensors and back (engine/file/grid_file.h has the names). A model
// says by part(i) what its state is: layers, the norms before them, points. All else is read as of any checkpoint.
#pragma once
#include <map>
#include <string>

#include "engine/file/grid_file.h"
#include "engine/file/json.h"
#include "models/model.h"

namespace bcq {

struct StoredModel {
  std::map<std::string, TensorInfo> tensors;  // of the whole model
  json about;                                 // "layers" and "folded_layer_scale" of quantization_config
  double bits_per_weight = 32;                // of the weights that are codes: these, all grids and compensations
};
// `source`: the file the model was read from, which has what quantization left alone. Error when weights are not on
// their grids.
StoredModel put_stored(Model& model, const SafeTensors& source);

// Part i as calibration left it, the float network that it was folded into, too: for runs that go on where they were
// interrupted. get_part() makes it that again, to the last bit, of a model that was loaded from the same file and of
// which the same was done before; `file` has the tensors, and in packed()->grids what put_part() returns. InputError,
// naming file and tensor, when they do not fit.
json put_part(Model& model, int i, std::map<std::string, TensorInfo>& tensors);
void get_part(Model& model, int i, const Loader& file);

// ---- For constructors of models ---------------------------------------------------------------------------------

// The weight [out, in] of the layer at this place: floats, or decoded codes. InputError as get_codes() has it.
Weight get_stored_weight(const Loader& at, int64_t out, int64_t in);
bool has_folded_layer_scale(const Loader& file);
// Whether there is a linear layer at this place.
inline bool has_linear(const Loader& at) { return at.has("weight") || (holds_grids(at) && at.has("qweight")); }
// All else, when everything that a float model has is loaded; nothing when the file is not one of a saved vision model.
// InputError, naming file and tensor, when something does not fit the model.
void get_stored(Model& model, const Loader& file);

}  // namespace bcq
