// Mean errors E[F - Q] of outputs: of layers from their mean inputs, of larger outputs by passes through a part.
#pragma once
#include <vector>

#include "quant/method.h"
#include "quant/streams.h"

namespace bcq {

using Means = std::vector<RunningMean>;

// Of one batch: the mean of f, or of f - q.  f, q [B, ..., C]
RunningMean mean_of_one(BcShape shape, const Tensor& f, const Tensor& q = {});
Means means_of(BcShape shape, const Tensors& inputs);

// Mean error of a linear layer's output [out] (or per position [T, out]), from its mean inputs [in] ([T, in]) in the
// float network and in the quantized one: the mean of a product is that of its input times the weight, so the layer
// need not be run twice.
Tensor error_by_means(const Layer& layer, const Tensor& real, const Tensor& quantized);

// Of a residual branch of part i.
HeldOutMean branch_error(Streams& streams, int i, const Method& method, const Point& branch);

// Of the output of the present part i, parts [first, i] run quantized from `inputs` of the first, one a batch; none:
// from the embedding.
HeldOutMean output_error(Streams& streams, const Tensors& inputs, int first, int i, const Method& method);

// Of the output of part i, which is its input plus what attention and the MLP add, on the float stream. Groups are all
// of its layers', real_means their mean inputs in the float network.
Tensor error_of_sum(Streams& streams, int i, const Method& method, const std::vector<Group>& groups,
                    const Tensors& real_means);
bool ends_branch(const Group& group);  // whether its output is what attention or the MLP adds

}  // namespace bcq
