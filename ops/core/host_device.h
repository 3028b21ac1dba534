// A function that the host and CUDA kernels both call: CONVOY_HOST_DEVICE inline double f(double);
#pragma once

#ifdef __CUDACC__
#define CONVOY_HOST_DEVICE __host__ __device__
#else
#define CONVOY_HOST_DEVICE
#endif
