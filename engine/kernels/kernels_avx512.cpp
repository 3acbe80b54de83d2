// The kernels compiled for AVX-512 F, BW, DQ, VL and VNNI. Runs on machines cpu.cpp finds to have them.
#define BCQ_TABLE kernels_avx512
#define BCQ_ISA_NAME "avx512"
#include "engine/kernels/kernels_impl.h"
