// Norms and the Hadamard rotation, a block a row in shared memory, in the CPU's order of float32 operations.
typedef long long i64;

// `levels` stages of the transform from `stride` on, on values held in registers, times c.
template <int levels>
__device__ __forceinline__ void stages(float* y, int p, int stride, float c) {
    constexpr int many = 1 << levels;
    for (int t = threadIdx.x; t < p / many; t += blockDim.x) {
        float* at = y + (t & ~(stride - 1)) * many + (t & (stride - 1));
        float v[many];
#pragma unroll
        for (int i = 0; i < many; ++i) v[i] = at[i * stride];
#pragma unroll
        for (int half = 1; half < many; half *= 2)
#pragma unroll
            for (int i = 0; i < many; ++i)
                if (!(i & half)) {
                    const float a = v[i], b = v[i + half];
                    v[i] = __fadd_rn(a, b);
                    v[i + half] = __fsub_rn(a, b);
                }
#pragma unroll
        for (int i = 0; i < many; ++i) at[i * stride] = __fmul_rn(v[i], c);
    }
    __syncthreads();
}

__device__ void transform(float* y, int p, float c) {
    int stride = 1;
    for (; stride * 8 < p; stride *= 8) stages<3>(y, p, stride, 1.0f);
    if (stride * 8 == p)
        stages<3>(y, p, stride, c);
    else if (stride * 4 == p)
        stages<2>(y, p, stride, c);
    else if (stride * 2 == p)
        stages<1>(y, p, stride, c);
    else
        stages<0>(y, p, stride, c);
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
    if (signs)
        for (int k = 32 * threadIdx.x; k < 6 * d; k += 32 * blockDim.x)
            asm volatile("prefetch.global.L1 [%0];" ::"l"(signs + k));
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
