// The rotation by matrix instructions. A warp holds a state as a matrix of 16 rows and D / 16 columns, zero up to 16, whose
// entry (a, c) is element 16 c + a. A round is two products, with Hadamard matrices of both sizes on either side; what they
// give lies as the transposed operand of the next round, so nothing is moved between lanes. Lane 4 g + t holds 8 entries
// x[h][k][e]: (2 t + e + 8 k, g + 8 h) before an even number of rounds, (g + 8 h, 2 t + e + 8 k) before an odd one.
struct Turned {
    float x[2][2][2];

    // The element x[h][k][e] is; that of a lane and steps h, k and e from there are sums of different bits.
    static __device__ __forceinline__ constexpr int element(int odd, int lane, int h, int k, int e) {
        return odd ? 16 * (lane % 4 * 2 + 8 * k + e) + lane / 4 + 8 * h : 16 * (lane / 4 + 8 * h) + lane % 4 * 2 + 8 * k + e;
    }

    // Where x[h][k][e] of a lane lies among those of all, 8 of a lane one after the other, for element i; a sum over bits too.
    static constexpr int SIZE = 256;
    static __device__ __forceinline__ constexpr int place(int odd, int i) {
        const int near = odd ? i / 16 : i % 16, far = odd ? i % 16 : i / 16;
        return (far % 8 * 4 + near % 8 / 2) * 8 + far / 8 * 4 + near / 8 * 2 + near % 2;
    }
    // Adds `share` of what lies there. Places of no element hold anything.
    __device__ __forceinline__ void add(const float* all, float share, int lane) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float4 four = *(const float4*)(all + lane * 8 + h * 4);
            x[h][0][0] += share * four.x, x[h][0][1] += share * four.y, x[h][1][0] += share * four.z, x[h][1][1] += share * four.w;
        }
    }

    // Calls f(x, element, what of it is the same in all lanes) for all that there are; with an even number of rounds pairs of
    // elements are neighbours.
    template <int ROUNDS, class F>
    __device__ __forceinline__ void each(int lane, F f) {
        constexpr int odd = ROUNDS % 2;
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int i = element(odd, lane, h, k, e);
                    if (i < D) f(x[h][k][e], i, element(odd, 0, h, k, e));
                    else x[h][k][e] = 0;
                }
            }
        }
    }

    // Bit 8 round + 4 h + 2 k + e of signs is set where the round flips an entry.
    __device__ __forceinline__ void flip(u32 signs, int round) {
        const u32 bits = signs >> 8 * round;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float& y = x[i / 4][i / 2 % 2][i % 2];
            y = __int_as_float(__float_as_int(y) ^ (int)(bits << (31 - i) & 0x80000000u));
        }
    }

    // One transform of rows and columns, `left` of what is contracted first.
    __device__ __forceinline__ void transform(const float (&left)[2][4], const float (&right)[2][4]) {
        float y[2][4] = {}, z[2][4] = {};
#pragma unroll
        for (int s = 0; s < 2; s++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const Parts u(x[h][s][0]), v(x[h][s][1]);
                const u32 a0 = __float_as_int(left[s][0]), a1 = __float_as_int(left[s][1]), a2 = __float_as_int(left[s][2]), a3 = __float_as_int(left[s][3]);
                multiply_tf32(y[h], a0, a1, a2, a3, u.high, v.high);
                if constexpr (PARTS == 2) multiply_tf32(y[h], a0, a1, a2, a3, u.low, v.low);
            }
        }
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const Parts u0(y[s][0]), u1(y[s][2]), u2(y[s][1]), u3(y[s][3]);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 b0 = __float_as_int(right[s][h]), b1 = __float_as_int(right[s][2 + h]);
                multiply_tf32(z[h], u0.high, u1.high, u2.high, u3.high, b0, b1);
                if constexpr (PARTS == 2) multiply_tf32(z[h], u0.low, u1.low, u2.low, u3.low, b0, b1);
            }
        }
#pragma unroll
        for (int i = 0; i < 8; i++) x[i / 4][i / 2 % 2][i % 2] = z[i / 2 % 2][i / 4 * 2 + i % 2];
    }

    // The leading 11 bits and the next ones, or the nearest 11.
    struct Parts {
        u32 high, low;
        __device__ __forceinline__ Parts(float x) {
            if constexpr (PARTS == 2) {
                high = __float_as_int(x) & 0xffffe000u;
                low = __float_as_int(x - __int_as_float(high)) & 0xffffe000u;
            } else {
                high = ((u32)__float_as_int(x) + 0x1000u) & 0xffffe000u, low = 0;
            }
        }
    };

    // All rounds, or those of the inverse, but for what makes a rotation orthogonal. NaN, or what is infinite, makes all NaN.
    template <int ROUNDS>
    __device__ __forceinline__ void turn(u32 signs, bool inverse, int lane) {
        const int g = lane / 4, t = lane % 4;
        const float u = __popc(g & 2 * t) % 2 ? -1.0f : 1.0f, w = g % 2 ? -u : u;
        const bool inside = D == 256 || (g < D / 16 && 2 * t < D / 16);
        const float v = inside ? u : 0, y = inside ? w : 0, more = D == 256 ? 1 : 0;
        const float rows[2][4] = {{u, u, w, w}, {u, -u, w, -w}};
        const float columns[2][4] = {{v, v * more, y, y * more}, {v * more, -v * more, y * more, -y * more}};
        // Rounding would make numbers of NaN.
        bool lost = false;
        if constexpr (PARTS == 1) {
            float zero = 0;
#pragma unroll
            for (int i = 0; i < 8; i++) zero += 0 * x[i / 4][i / 2 % 2][i % 2];
            lost = __any_sync(~0u, zero != 0);
        }
#pragma unroll
        for (int i = 0; i < ROUNDS; i++) {
            const int round = inverse ? ROUNDS - 1 - i : i;
            if (!inverse) flip(signs, round);
            if ((inverse ? round + 1 : round) % 2) transform(columns, rows);
            else transform(rows, columns);
            if (inverse) flip(signs, round);
        }
        if (lost) {
#pragma unroll
            for (int i = 0; i < 8; i++) x[i / 4][i / 2 % 2][i % 2] = minus_infinity() - minus_infinity();
        }
    }
};

// Two neighbouring elements of a state.
__device__ __forceinline__ void load_pair(State (&x)[2], const State* from) {
    if constexpr (sizeof(State) == 4) {
        const float2 both = *(const float2*)from;
        x[0] = both.x, x[1] = both.y;
    } else {
        const u32 both = *(const u32*)from;
        x[0] = (State)(both & 0xffff), x[1] = (State)(both >> 16);
    }
}
__device__ __forceinline__ void store_pair(State* to, float x, float y) {
    if constexpr (sizeof(State) == 4) *(float2*)to = make_float2(x, y);
    else *(u32*)to = (u32)to_state(x) | (u32)to_state(y) << 16;
}

// The query of a warp and all that turns it, loaded ahead of their use.
struct Query {
    State states[2][2][2];
    float mean[2][2][2], given[2][2][2];  // given: what the rotation would give
    // That came last.
    __device__ __forceinline__ u32 last_word() const {
        if constexpr (sizeof(State) == 4) return __float_as_int(to_float(states[D == 256][1][1]));
        else return states[D == 256][1][1];
    }
    float2 units[2];  // step and offset of the dimensions that the lane holds once rotated: of all, or of odd and even ones
    u32 signs;

    __device__ __forceinline__ void load(const Problem& p, const Place& at, int i, int lane) {
        const float2* steps = (const float2*)(p.key_tables + 2 * KEY_Q);
#pragma unroll
        for (int e = 0; e < 2; e++) units[e] = steps[Turned::element(KEY_ROUNDS % 2, lane, 0, 0, e) % KEY_Q];
        const State* from = at.query(p, i);
        const float* ready = KEY_ROUNDS == 0 && p.key_queries ? p.key_queries + at.packed(p, i) : nullptr;
        const float* means = p.key_mean ? p.key_mean + at.kv_head * D : nullptr;
        signs = p.key_signs[lane];
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int first = Turned::element(0, lane, h, k, 0);
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    states[h][k][e] = 0;
                    mean[h][k][e] = given[h][k][e] = 0;
                }
                if (first >= D) continue;
                load_pair(states[h][k], from + first);
                if (ready) {
                    const float2 both = *(const float2*)(ready + first);
                    given[h][k][0] = both.x, given[h][k][1] = both.y;
                }
                if (means) {
                    const float2 both = *(const float2*)(means + first);
                    mean[h][k][0] = both.x, mean[h][k][1] = both.y;
                }
            }
        }
    }
};

// Where the high byte of a dimension lies in a rotated query: a sum over the bits of the dimension.
__device__ __forceinline__ constexpr int query_byte(int dim) {
    const int period = dim % KEY_CHUNK / KEY_Q;
    return 4 * (dim / KEY_CHUNK * QUERY_CHUNK + period / 4 * KEY_Q + dim % KEY_Q) + period % 4;
}

// Rotates the query of a warp into shared memory, as 16-bit integers that pair with entries of tables. Its factors turn a sum
// of products into a base-2 logit: the first times the sum, plus the second.
__device__ __forceinline__ void rotate(
    const Problem& p, const Query& query, unsigned char* memory, float2* factors, float* biases, int i, int lane
) {
    Turned turned;
    float top = 0, bias = 0, offset = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const float x = to_float(query.states[j / 4][j / 2 % 2][j % 2]);
        turned.x[j / 4][j / 2 % 2][j % 2] = KEY_ROUNDS == 0 && p.key_queries ? query.given[j / 4][j / 2 % 2][j % 2] : x;
        bias += x * query.mean[j / 4][j / 2 % 2][j % 2];
    }
    turned.turn<KEY_ROUNDS>(query.signs, false, lane);
    turned.each<KEY_ROUNDS>(lane, [&](float& x, int, int step) {
        // A period divides 8: the place in it depends on the lane and, of neighbours, on which of both it is.
        const float2 unit = query.units[KEY_ROUNDS % 2 ? 0 : step % 2];
        offset += x * unit.y;
        x *= unit.x;
        top = max_(top, fabsf(x));
    });
#pragma unroll
    for (int stride = 16; stride > 0; stride /= 2) {
        top = max_(top, __shfl_xor_sync(~0u, top, stride));
        bias += __shfl_xor_sync(~0u, bias, stride);
        offset += __shfl_xor_sync(~0u, offset, stride);
    }
    top = top > 0 ? top : 1.0f;
    if (lane == 0) {
        const float scaling = p.scaling * p.key_shrink;
        factors[i] = make_float2(scaling * top * (1 / MOST_QUERY), scaling * offset);
        biases[i] = bias * p.scaling;
    }
    const float inverse = MOST_QUERY * reciprocal(top);
    unsigned char* row = memory + ROTATED + i * QUERY_ROW * 4 + query_byte(Turned::element(KEY_ROUNDS % 2, lane, 0, 0, 0));
    turned.each<KEY_ROUNDS>(lane, [&](float x, int, int step) {
        // The integer is the end of the sum's mantissa.
        const int integer = __float_as_int(x * inverse + __int_as_float(MAGIC));
        unsigned char* at = row + query_byte(step);
        at[0] = (unsigned char)((OWN == 2 ? integer : integer + 128) >> 8), at[QUERY_LOW * 4] = (unsigned char)integer;
        if (KEY_HALVES) at[2] = at[QUERY_LOW * 4 + 2] = 0;
    });
}
