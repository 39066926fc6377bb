// Norms and the Hadamard rotation, a block a row in shared memory, in the CPU's order of float32 operations.
typedef long long i64;

__device__ void transform(float* y, int p, float c) {
    for (int stride = 1; stride < p; stride *= 2) {
        for (int k = threadIdx.x; k < p / 2; k += blockDim.x) {
            const int i = (k & ~(stride - 1)) * 2 + (k & (stride - 1));
            const float a = y[i], b = y[i + stride];
            y[i] = __fadd_rn(a, b);
            y[i + stride] = __fsub_rn(a, b);
        }
        __syncthreads();
    }
    for (int k = threadIdx.x; k < p; k += blockDim.x) y[k] = __fmul_rn(y[k], c);
    __syncthreads();
}

__device__ void apply_signs(float* y, const float* signs, int d) {
    for (int k = threadIdx.x; k < d; k += blockDim.x) y[k] = __fmul_rn(y[k], signs[k]);
    __syncthreads();
}

__device__ void mix(float* y, int h, float c) {
    for (int k = threadIdx.x; k < h; k += blockDim.x) {
        const float a = y[k], b = y[k + h];
        y[k] = __fmul_rn(__fadd_rn(a, b), c);
        y[k + h] = __fmul_rn(__fsub_rn(a, b), c);
    }
    __syncthreads();
}

// x float32 [n, d] -> y float32 [n, d]; norms float64 [n] or null, and with them rows of squared length d.
extern "C" __global__ void rotate(const float* x, i64 n, int d, int p, float c, float half_root, const float* signs,
                                  int inverse, double* norms, float* out) {
    extern __shared__ float y[];
    __shared__ double gain;
    for (i64 row = blockIdx.x; row < n; row += gridDim.x) {
        for (int k = threadIdx.x; k < d; k += blockDim.x) y[k] = x[row * d + k];
        __syncthreads();
        if (norms) {
            if (threadIdx.x < 32) {
                double sum = 0.0;
                if (threadIdx.x < 8)
                    for (int k = threadIdx.x; k < d; k += 8) sum = __dadd_rn(sum, __dmul_rn((double)y[k], (double)y[k]));
                for (int step = 4; step; step >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, step);
                if (threadIdx.x == 0) {
                    const double norm = __dsqrt_rn(sum);
                    norms[row] = norm;
                    gain = norm > 0.0 ? __ddiv_rn(__dsqrt_rn((double)d), norm) : 0.0;
                }
            }
            __syncthreads();
            for (int k = threadIdx.x; k < d; k += blockDim.x) y[k] = (float)__dmul_rn((double)y[k], gain);
            __syncthreads();
        }
        if (signs)
            for (int round = 0; round < 3; ++round) {
                const int r = inverse ? 2 - round : round;
                const float *first = signs + r * 2 * d, *second = first + d;
                if (!inverse) {
                    apply_signs(y, first, d);
                    transform(y, p, c);
                    if (d > p) {
                        apply_signs(y, second, d);
                        transform(y + d - p, p, c);
                        if (r < 2) mix(y, d / 2, half_root);
                    }
                } else {
                    if (d > p) {
                        if (r < 2) mix(y, d / 2, half_root);
                        transform(y + d - p, p, c);
                        apply_signs(y, second, d);
                    }
                    transform(y, p, c);
                    apply_signs(y, first, d);
                }
            }
        for (int k = threadIdx.x; k < d; k += blockDim.x) out[row * d + k] = y[k];
        __syncthreads();
    }
}
