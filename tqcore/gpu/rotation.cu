// Norms and the Hadamard rotation, a block a row in shared memory, in the CPU's order of float32 operations.
typedef unsigned int u32;
typedef long long i64;

// Where value k lies: a gap after eight spares bank conflicts at every stride.
__device__ __forceinline__ int place(int k) { return k + (k >> 3); }

// `levels` stages of the transform of p values from `first` on, from `stride` on, on values held in registers, times c.
template <int levels>
__device__ __forceinline__ void stages(float* y, int first, int p, int stride, float c) {
    constexpr int many = 1 << levels;
    for (int t = threadIdx.x; t < p / many; t += blockDim.x) {
        const int at = first + (t & ~(stride - 1)) * many + (t & (stride - 1));
        float v[many];
#pragma unroll
        for (int i = 0; i < many; ++i) v[i] = y[place(at + i * stride)];
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
        for (int i = 0; i < many; ++i) y[place(at + i * stride)] = __fmul_rn(v[i], c);
    }
    __syncthreads();
}

// Of p values, a power of two from 8 on. One copy: for few rows fetching the code takes most of the time.
__device__ __noinline__ void transform(float* y, int first, int p, float c) {
    int stride = 1;
    for (; stride * 8 <= p; stride *= 8) stages<3>(y, first, p, stride, stride * 8 == p ? c : 1.0f);
    if (stride * 4 == p)
        stages<2>(y, first, p, stride, c);
    else if (stride * 2 == p)
        stages<1>(y, first, p, stride, c);
}

// Bit k % 32 of word k // 32 says that value k changes its sign.
__device__ void apply_signs(float* y, const u32* signs, int d) {
    for (int k = threadIdx.x; k < d; k += blockDim.x)
        if (signs[k >> 5] >> (k & 31) & 1) y[place(k)] = -y[place(k)];
    __syncthreads();
}

__device__ void mix(float* y, int h, float c) {
    for (int k = threadIdx.x; k < h; k += blockDim.x) {
        const float a = y[place(k)], b = y[place(k + h)];
        y[place(k)] = __fmul_rn(__fadd_rn(a, b), c);
        y[place(k + h)] = __fmul_rn(__fsub_rn(a, b), c);
    }
    __syncthreads();
}

// x float32 [n, d] -> y float32 [n, d]; norms float64 [n] or null, and with them rows of squared length d.
extern "C" __global__ void rotate(const float* x, i64 n, int d, int p, float c, float half_root, const u32* signs,
                                  int inverse, double* norms, float* out) {
    extern __shared__ float y[];
    __shared__ double gain;
    u32* bits = (u32*)y + d + d / 8;
    const int words = (d + 31) / 32;
    if (signs)
        for (int w = threadIdx.x; w < 6 * words; w += blockDim.x) bits[w] = signs[w];
    for (i64 row = blockIdx.x; row < n; row += gridDim.x) {
        for (int k = threadIdx.x; k < d; k += blockDim.x) y[place(k)] = x[row * d + k];
        __syncthreads();
        if (norms) {
            if (threadIdx.x < 32) {
                double sum = 0.0;
                if (threadIdx.x < 8)
                    for (int k = threadIdx.x; k < d; k += 8) {
                        const double v = y[place(k)];
                        sum = __dadd_rn(sum, __dmul_rn(v, v));
                    }
                for (int step = 4; step; step >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, step);
                if (threadIdx.x == 0) {
                    const double norm = __dsqrt_rn(sum);
                    norms[row] = norm;
                    gain = norm > 0.0 ? __ddiv_rn(__dsqrt_rn((double)d), norm) : 0.0;
                }
            }
            __syncthreads();
            for (int k = threadIdx.x; k < d; k += blockDim.x) y[place(k)] = (float)__dmul_rn((double)y[place(k)], gain);
            __syncthreads();
        }
        if (signs)
            for (int round = 0; round < 3; ++round) {
                const int r = inverse ? 2 - round : round;
                const u32 *first = bits + r * 2 * words, *second = first + words;
                if (!inverse) {
                    apply_signs(y, first, d);
                    transform(y, 0, p, c);
                    if (d > p) {
                        apply_signs(y, second, d);
                        transform(y, d - p, p, c);
                        if (r < 2) mix(y, d / 2, half_root);
                    }
                } else {
                    if (d > p) {
                        if (r < 2) mix(y, d / 2, half_root);
                        transform(y, d - p, p, c);
                        apply_signs(y, second, d);
                    }
                    transform(y, 0, p, c);
                    apply_signs(y, first, d);
                }
            }
        for (int k = threadIdx.x; k < d; k += blockDim.x) out[row * d + k] = y[place(k)];
        __syncthreads();
    }
}
