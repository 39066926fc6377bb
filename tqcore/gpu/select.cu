// Thresholds from samples, and the best of the candidates by exact scores.

// Keys of floats that compare as they do.
__device__ __forceinline__ u32 ordered(float value) {
    const u32 v = __float_as_uint(value);
    return v ^ (v >> 31 ? 0xffffffffu : 0x80000000u);
}

// The upper 16 bits of the key of the k-th largest of `count` values, k at most count; for a block of 256 or more threads.
__device__ u32 upper_half_of_kth(const float* values, int count, int k) {
    __shared__ u32 bins[256];
    __shared__ u32 prefix, wanted;
    const int lane = threadIdx.x & 31;
    if (threadIdx.x == 0) prefix = 0, wanted = k;
    for (int shift = 24; shift >= 16; shift -= 8) {
        if (threadIdx.x < 256) bins[threadIdx.x] = 0;
        __syncthreads();
        const u32 above = prefix;
        for (int base = 0; base < count; base += blockDim.x) {
            const int i = base + threadIdx.x;
            const u32 key = i < count ? ordered(values[i]) : 0;
            const bool part = i < count && (shift == 24 || key >> (shift + 8) == above);
            // The first digits are nearly all alike, and atomics on one address go one after the other.
            const u32 digit = part ? key >> shift & 255 : 256, alike = __match_any_sync(0xffffffffu, digit);
            if (part && lane == __ffs(alike) - 1) atomicAdd(bins + digit, (u32)__popc(alike));
        }
        __syncthreads();
        if (threadIdx.x < 32) {
            // Lane l holds bins 255 - 8 l down to 248 - 8 l.
            u32 own_sum = 0;
            for (int i = 0; i < 8; ++i) own_sum += bins[255 - 8 * lane - i];
            u32 sum = own_sum;
            for (int m = 1; m < 32; m *= 2) {
                const u32 other = __shfl_up_sync(0xffffffffu, sum, m);
                if (lane >= m) sum += other;
            }
            u32 before = sum - own_sum;
            const u32 rank = wanted;
            __syncwarp();
            if (before < rank && rank <= sum)
                for (int i = 0; i < 8; ++i) {
                    const int bin = 255 - 8 * lane - i;
                    if (before + bins[bin] >= rank) {
                        prefix = above << 8 | bin;
                        wanted = rank - before;
                        break;
                    }
                    before += bins[bin];
                }
        }
        __syncthreads();
    }
    return prefix;
}

// Thresholds: the least exact score of rows that k of the largest of float32 [queries][count] stand for, ranked by their
// upper 16 bits. A value stands for row `value & 31` of block places[queries][count], or of block i * period without
// places. -inf where there are fewer than k. A block of 256 or more threads a query, k at most 128.
extern "C" __global__ void __launch_bounds__(1024) first_threshold(Code code, Rows rows, const float* q,
                                                                   const float* values, const int* places, int period,
                                                                   int count, int k, float* threshold) {
    extern __shared__ double own[];
    __shared__ u32 taken;
    __shared__ double least[32];
    __shared__ i64 chosen[128];
    const i64 query = blockIdx.x;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    u32* words = (u32*)(own + Exact::size(code)) + warp * code.words;
    const float* given = values + query * count;
    if (threadIdx.x == 0) taken = 0;
    const Exact exact(code, q + query * code.d, own);
    const u32 kth = upper_half_of_kth(given, count, min(k, count)) << 16;
    if (count < k || kth <= ordered(-INF)) {
        if (threadIdx.x == 0) threshold[query] = -INF;
        return;
    }
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        if (ordered(given[i]) < kth) continue;
        const u32 at = atomicAdd(&taken, 1u);
        const i64 block = places ? (i64)places[query * count + i] : (i64)i * period;
        if (at < k) chosen[at] = block * 32 + (__float_as_uint(given[i]) & 31);
    }
    __syncthreads();
    double lowest = INF;
    for (int c = warp; c < k; c += warps) lowest = fmin(lowest, exact_score(code, rows, exact, chosen[c], words, lane));
    if (lane == 0) least[warp] = lowest;
    __syncthreads();
    if (threadIdx.x) return;
    for (int w = 1; w < warps; ++w) lowest = fmin(lowest, least[w]);
    threshold[query] = __double2float_rd(lowest);
}

__device__ __forceinline__ bool before(double a, i64 x, double b, i64 y) { return a != b ? a > b : x < y; }

// Exact scores of the candidates of queries, for `finish`; grid [blocks][queries].
extern "C" __global__ void score_found(Code code, Rows rows, const float* q, const int* counts, const int* found,
                                       int room, double* scores) {
    extern __shared__ double own[];
    const i64 query = blockIdx.y;
    const int count = min(counts[query], room), lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    if ((int)blockIdx.x * warps >= count) return;
    u32* words = (u32*)(own + Exact::size(code)) + (threadIdx.x >> 5) * code.words;
    const Exact exact(code, q + query * code.d, own);
    for (int c = blockIdx.x * warps + (threadIdx.x >> 5); c < count; c += gridDim.x * warps) {
        const double score = exact_score(code, rows, exact, found[query * room + c], words, lane);
        if (lane == 0) scores[query * room + c] = score;
    }
}

// Copies `count` floats from the first of three addresses in the host's memory, and the other two addresses. Reads of that
// memory go one after the other, so there is one a block.
extern "C" __global__ void fetch(const volatile i64* addresses, int count, float* to, i64* others) {
    __shared__ i64 first;
    if (threadIdx.x == 0) first = addresses[0];
    if (blockIdx.x == 0 && threadIdx.x >= 32 && threadIdx.x < 34) others[threadIdx.x - 32] = addresses[threadIdx.x - 31];
    __syncthreads();
    const float* from = (const float*)first;
    for (int k = blockIdx.x * blockDim.x + threadIdx.x; k < count; k += gridDim.x * blockDim.x) to[k] = from[k];
}

// Scores candidates exactly, unless `known` holds their scores already, and writes the k best of each query; or, where
// there is a threshold, raises it to the k-th score and leaves the candidates that reach it. A block a query, `room` a
// power of two. Queries with more candidates than room are marked in `overflow` and in status[1]. `addresses` of
// distances and labels stand for these if there are any.
extern "C" __global__ void __launch_bounds__(1024) finish(Code code, Rows rows, const float* q, const double* constants,
                                                         const i64* ids, int* counts, int* found, const double* known,
                                                         int room, int k, float* distances, i64* labels,
                                                         float* threshold, u8* overflow, int* status,
                                                         const i64* addresses) {
    extern __shared__ double scores[];
    i64* names = (i64*)(scores + room);
    double* own = (double*)(names + room);
    u32* words = (u32*)(own + Exact::size(code));
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const i64 query = blockIdx.x;
    const int total = counts[query], count = min(total, room);
    int width = 2;
    while (width < count) width *= 2;
    if (known) {
        for (int c = threadIdx.x; c < width; c += blockDim.x) {
            const int row = c < count ? found[query * room + c] : 0;
            scores[c] = c < count ? known[query * room + c] : -(double)INF;
            names[c] = c >= count ? 0x7fffffffffffffffll : ids && !threshold ? ids[row] : row;
        }
    } else {
        const Exact exact(code, q + query * code.d, own);
        for (int c = warp; c < width; c += warps) {
            double s = -(double)INF;
            i64 name = 0x7fffffffffffffffll;
            if (c < count) {
                const i64 row = found[query * room + c];
                s = exact_score(code, rows, exact, row, words + warp * code.words, lane);
                name = ids && !threshold ? ids[row] : row;
            }
            if (lane == 0) scores[c] = s, names[c] = name;
        }
    }
    __syncthreads();
    for (int span = 2; span <= width; span *= 2)
        for (int step = span / 2; step; step /= 2) {
            for (int t = threadIdx.x; t < width / 2; t += blockDim.x) {
                const int a = (t & ~(step - 1)) * 2 + (t & (step - 1)), b = a + step;
                const bool down = (a & span) == 0;
                if (before(scores[b], names[b], scores[a], names[a]) == down) {
                    const double s = scores[a];
                    scores[a] = scores[b], scores[b] = s;
                    const i64 name = names[a];
                    names[a] = names[b], names[b] = name;
                }
            }
            __syncthreads();
        }
    if (threadIdx.x == 0 && total > room) {
        overflow[query] = 1;
        if (status) status[1] = 1;
    }
    if (threshold) {
        if (count < k) return;
        const double least = scores[k - 1];
        if (threadIdx.x == 0) threshold[query] = fmaxf(threshold[query], __double2float_rd(least));
        for (int c = threadIdx.x; c < count; c += blockDim.x) {
            found[query * room + c] = (int)names[c];
            if (scores[c] >= least && (c + 1 == count || scores[c + 1] < least)) counts[query] = c + 1;
        }
        return;
    }
    if (addresses) distances = (float*)addresses[0], labels = (i64*)addresses[1];
    for (int r = threadIdx.x; r < k; r += blockDim.x) {
        float value = rows.half_norm ? 3.402823466e38f : -3.402823466e38f;
        i64 name = -1;
        if (r < count) {
            const double s = scores[r], c = constants ? constants[query] : 0.0;
            value = rows.half_norm ? (float)fmax(c - 2.0 * s, 0.0) : (float)(s + c);
            name = names[r];
        }
        distances[query * k + r] = value;
        labels[query * k + r] = name;
    }
}
