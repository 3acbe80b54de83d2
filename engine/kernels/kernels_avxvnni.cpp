// The kernels compiled for AVX2 + FMA + F16C and AVX-VNNI. Runs on machines cpu.cpp finds to have them.
#define BCQ_TABLE kernels_avxvnni
#define BCQ_ISA_NAME "avx-vnni"
#include "engine/kernels/kernels_impl.h"
