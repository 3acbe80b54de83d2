// The kernels compiled for the baseline (SSE2). Runs on every x86-64 machine.
#define BCQ_TABLE kernels_plain
#define BCQ_ISA_NAME "plain"
#include "engine/kernels/kernels_impl.h"
