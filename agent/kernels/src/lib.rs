//! Compute kernels: scalar truth, AVX2 and AVX-512 chosen at run time.
