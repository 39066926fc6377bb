// What the decode kernel asks of the machine, a few instructions each. No header is included: the run-time compiler needs
// none.

typedef unsigned int u32;
typedef unsigned short u16;

// The block's shared memory.
__device__ __forceinline__ unsigned char* block_memory() {
    extern __shared__ __align__(1024) unsigned char memory[];
    return memory;
}
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ float exp2_(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ float log2_(float x) { float y; asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ float reciprocal(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ float max_(float x, float y) { float z; asm("max.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y)); return z; }
// NaN if either is.
__device__ __forceinline__ float min_nan(float x, float y) { float z; asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y)); return z; }
__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }
__device__ __forceinline__ float half_float(u16 h) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(h)); return y; }
__device__ __forceinline__ u16 float_half(float x) { u16 h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h; }
__device__ __forceinline__ u16 float_brain(float x) { u16 h; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h; }
// The integer next to x, up to 65535, in the low half of a word.
__device__ __forceinline__ u32 round_bits(float x) { return (u32)__float_as_int(x + 8388608.0f); }

// d = c + a b, of matrices of bytes: [16, 32] and [32, 8] over the lanes as PTX has it for mma.m16n8k32; a is unsigned.
__device__ __forceinline__ void multiply_signed(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, const int (&c)[4]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}
__device__ __forceinline__ void multiply_unsigned(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, const int (&c)[4]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

// Bytes of (a, b), eight in all, that four nibbles of s select; a nibble of 8 and more takes the sign of a byte instead, eight times.
__device__ __forceinline__ u32 permute(u32 a, u32 b, u32 s) {
    u32 y; asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(s)); return y;
}

// c += a b, of float32 whose last 13 bits are zero: [16, 8] and [8, 8] as for mma.m16n8k8.
__device__ __forceinline__ void multiply_tf32(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// c += a b, of states of 16 bits: [16, 16] and [16, 8] as for mma.m16n8k16.
__device__ __forceinline__ void multiply_halves(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_brains(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Loads 16, 8, 4 or 2 bytes that are read once, if `wanted`; else leaves what there is.
__device__ __forceinline__ void load_if(bool wanted, const void* p, u32& a, u32& b, u32& c, u32& d) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %5, 0; @p ld.global.nc.L1::no_allocate.v4.b32 {%0,%1,%2,%3}, [%4];}"
        : "+r"(a), "+r"(b), "+r"(c), "+r"(d) : "l"(p), "r"((int)wanted));
}
__device__ __forceinline__ void load_if(bool wanted, const void* p, u32& a, u32& b) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %3, 0; @p ld.global.nc.L1::no_allocate.v2.b32 {%0,%1}, [%2];}"
        : "+r"(a), "+r"(b) : "l"(p), "r"((int)wanted));
}
__device__ __forceinline__ void load_if(bool wanted, const void* p, u32& a) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p ld.global.nc.L1::no_allocate.b32 %0, [%1];}"
        : "+r"(a) : "l"(p), "r"((int)wanted));
}
__device__ __forceinline__ void load_if(bool wanted, const void* p, u16& a) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p ld.global.nc.L1::no_allocate.b16 %0, [%1];}"
        : "+h"(a) : "l"(p), "r"((int)wanted));
}

// `x`, but not before `y` is there: what waits for one load of a thread may wait for those that it issued since.
__device__ __forceinline__ bool after(bool x, u32 y) {
    u32 z; asm volatile("{.reg .pred p; or.b32 %0, %1, 1; setp.ne.b32 p, %0, 0; selp.b32 %0, %2, 0, p;}" : "=&r"(z) : "r"(y), "r"((u32)x));
    return z;
}

// Sixteen bytes of shared memory that do not change; read again wherever they are asked for.
__device__ __forceinline__ uint4 shared_words(u32 address) {
    uint4 x;
    asm volatile("ld.volatile.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(address));
    return x;
}
// Keeps loads from memory that follow behind those before.
__device__ __forceinline__ void in_this_order() { asm volatile("" : : : "memory"); }

// Cycles of the multiprocessor.
__device__ __forceinline__ long long cycles() { long long x; asm volatile("mov.u64 %0, %clock64;" : "=l"(x)); return x; }
// Orders what the thread, and those it has met, wrote before and what it reads after, for the whole device.
__device__ __forceinline__ void fence() { asm volatile("fence.acq_rel.gpu;" : : : "memory"); }
// Words that blocks pass on to each other.
__device__ __forceinline__ void load_shared(const float* p, u32 (&x)[4]) {
    asm volatile("ld.relaxed.gpu.global.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "l"(p));
}
__device__ __forceinline__ void load_shared(const float* p, u32 (&x)[2]) { asm volatile("ld.relaxed.gpu.global.v2.b32 {%0,%1}, [%2];" : "=r"(x[0]), "=r"(x[1]) : "l"(p)); }
__device__ __forceinline__ void store_shared(float* p, const u32 (&x)[4]) {
    asm volatile("st.relaxed.gpu.global.v4.b32 [%4], {%0,%1,%2,%3};" : : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(p) : "memory");
}
__device__ __forceinline__ void store_shared(float* p, const u32 (&x)[2]) { asm volatile("st.relaxed.gpu.global.v2.b32 [%2], {%0,%1};" : : "r"(x[0]), "r"(x[1]), "l"(p) : "memory"); }
// Where the first THREADS of a block meet.
template <int THREADS>
__device__ __forceinline__ void meet() { asm volatile("bar.sync 1, %0;" : : "n"(THREADS) : "memory"); }

// Barriers in shared memory: a phase ends with its `count`th arrival; `phase` is its parity.
__device__ __forceinline__ void barrier_set(u32 barrier, int count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" : : "r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" : : "r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 phase) {
    asm volatile(
        "{.reg .pred done; again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1; @!done bra again;}"
        : : "r"(barrier), "r"(phase) : "memory");
}
