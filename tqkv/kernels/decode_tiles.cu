// Scores of STEP tiles: c[tile] is tokens g and g + 8 against queries 2 t and 2 t + 1.
__device__ __forceinline__ void score(
    float (&c)[STEP][4], const Codes<KEY_BYTES> (&codes)[STEP], u32 table, u32 fragments
) {
    u32 a[STEP][4];
    int filled = 0, step = 0;
#pragma unroll
    for (int j = 0; j < KEY_NIBBLES; j++) {
        u32 words[STEP][2][2];
        const bool pair = KeyRate::pair(j);
#pragma unroll
        for (int tile = 0; tile < STEP; tile++) {
#pragma unroll
            for (int token = 0; token < 2; token++) {
                look_up(entry(codes[tile].words, token * KEY_NIBBLES + j, table), j % KEY_P, pair,
                        words[tile][token][0], words[tile][token][1]);
            }
        }
#pragma unroll
        for (int word = 0; word < 2; word++) {
            if (word > pair) continue;
#pragma unroll
            for (int tile = 0; tile < STEP; tile++) {
                a[tile][2 * filled] = words[tile][0][word];
                a[tile][2 * filled + 1] = words[tile][1][word];
            }
            if (++filled == 2) {
                u32 b0, b1;
                asm("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(b0), "=r"(b1) : "r"(fragments + step * 256));
#pragma unroll
                for (int tile = 0; tile < STEP; tile++) {
                    multiply(c[tile], a[tile][0], a[tile][1], a[tile][2], a[tile][3], b0, b1);
                }
                filled = 0;
                step++;
            }
        }
    }
}

// Adds weighted values of a tile: rows of sums[r] are dimensions 2 r and 2 r + 1 of the lane group's chunk, and the
// last one holds what the last nibble adds to the first dimensions of the next chunk.
__device__ __forceinline__ void accumulate(
    float (&sums)[VALUE_STEPS + 1][4], const Codes<VALUE_BYTES>& codes, u32 table, u32 b0, u32 b1
) {
    u32 before[4] = {0, 0, 0, 0};
    u32 a[4];
#pragma unroll
    for (int j = 0; j < VALUE_NIBBLES; j++) {
        u32 words[4][2];
        const bool pair = ValueRate::pair(j);
#pragma unroll
        for (int token = 0; token < 4; token++) {
            look_up(entry(codes.words, token * VALUE_NIBBLES + j, table), j % VALUE_P, pair, words[token][0], words[token][1]);
        }
        if (ValueRate::closes(j) == 2) {
            u32 x[4];
#pragma unroll
            for (int token = 0; token < 4; token++) x[token] = j ? add_pair(words[token][0], before[token]) : words[token][0];
            // Two dimensions at once: the chunk's even and odd dimension only where they are a row pair.
            const int dim = ValueRate::first(j);
            a[dim & 1] = low_halves(x[0], x[1]);
            a[2 + (dim & 1)] = low_halves(x[2], x[3]);
            if (dim & 1) multiply(sums[dim / 2], a[0], a[1], a[2], a[3], b0, b1);
            a[1 - (dim & 1)] = high_halves(x[0], x[1]);
            a[3 - (dim & 1)] = high_halves(x[2], x[3]);
            if (!(dim & 1)) multiply(sums[dim / 2], a[0], a[1], a[2], a[3], b0, b1);
        } else {
            const int dim = ValueRate::first(j);
            // What the nibble before continues lies low in a word of its own or high in the shared one.
            const bool high = j > 0 && !ValueRate::pair(j - 1);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                u32 x = low_halves(words[2 * half][0], words[2 * half + 1][0]);
                if (j) {
                    x = add_half(before[2 * half], high, 0x00003c00u, x);
                    x = add_half(before[2 * half + 1], high, 0x3c000000u, x);
                }
                a[2 * half + (dim & 1)] = x;
            }
            if (dim & 1) multiply(sums[dim / 2], a[0], a[1], a[2], a[3], b0, b1);
        }
#pragma unroll
        for (int token = 0; token < 4; token++) before[token] = pair ? words[token][1] : words[token][0];
    }
    constexpr bool shared_word = !ValueRate::pair(VALUE_NIBBLES - 1);
    u32 lo[2], hi[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 x = before[2 * half], y = before[2 * half + 1];
        lo[half] = shared_word ? high_halves(x, y) : low_halves(x, y);
        hi[half] = shared_word ? 0 : high_halves(x, y);
    }
    multiply(sums[VALUE_STEPS], lo[0], hi[0], lo[1], hi[1], b0, b1);
}

// Walsh-Hadamard transform over a warp; lane l holds elements 32 e + l. Code that runs once is kept short: fetching it
// costs more than running it.
__device__ __forceinline__ void hadamard(float (&x)[PER_LANE], int lane) {
#pragma unroll 1
    for (int stride = 1; stride < 32; stride *= 2) {
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            float other = __shfl_xor_sync(~0u, x[e], stride);
            x[e] = lane & stride ? other - x[e] : x[e] + other;
        }
    }
#pragma unroll
    for (int stride = 1; stride < PER_LANE; stride *= 2) {
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            if (e & stride) continue;
            float u = x[e], v = x[e + stride];
            x[e] = u + v;
            x[e + stride] = u - v;
        }
    }
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int stride = 16; stride > 0; stride /= 2) x += __shfl_xor_sync(~0u, x, stride);
    return x;
}
