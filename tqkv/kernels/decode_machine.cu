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
__device__ __forceinline__ float max_(float x, float y) { float z; asm("max.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y)); return z; }
__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }
__device__ __forceinline__ float half_float(u16 h) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(h)); return y; }
__device__ __forceinline__ u16 float_half(float x) { u16 h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h; }
__device__ __forceinline__ u16 float_brain(float x) { u16 h; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h; }
__device__ __forceinline__ u32 half_pair(float lo, float hi) {
    u32 y; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo)); return y;
}

// c += a b, of matrices of float16: [16, 16] and [16, 8] over the lanes as PTX has it for mma.m16n8k16.
__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same for [16, 8] and [8, 8] of float32, whose last 13 bits must be zero.
__device__ __forceinline__ void multiply_tf32(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The transpose of an 8 x 8 matrix of 16-bit entries, a row a lane group, two entries a lane.
__device__ __forceinline__ u32 transpose(u32 a) {
    u32 y; asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(a)); return y;
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

// Four bytes of shared memory that do not change from here on.
__device__ __forceinline__ u32 shared_word(u32 address) { u32 x; asm("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(address)); return x; }
// Keeps loads from memory that follow behind those before.
__device__ __forceinline__ void in_this_order() { asm volatile("" : : : "memory"); }
// Makes every such load from an address depend on what comes before.
__device__ __forceinline__ u32 fixed_from_here(u32 address) { asm volatile("" : "+r"(address) : : "memory"); return address; }

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
