// The kernels compiled for AVX2 + FMA + F16C. Runs on machines cpu.cpp finds to have them.
#define BCQ_TABLE kernels_avx2
#define BCQ_ISA_NAME "avx2"
#include "engine/kernels/kernels_impl.h"
