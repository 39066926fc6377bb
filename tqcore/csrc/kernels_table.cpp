// The level's entry in the dispatch table; the other kernel sources declare nothing outside their namespace.
#include "lanes.h"

namespace tq::TQ_LEVEL {

void load_tile(const float*, ptrdiff_t, int, int, float*, double*);
void load_rotated(const float*, ptrdiff_t, int, int, float*);
void store_tile(const float*, int, int, float*, ptrdiff_t);
void rotate_tile(const RotationView*, float*, int);
void rotate_row(const RotationView*, float*, int);
size_t chain_scratch(const ChainView*);
void chain_encode(const ChainView*, const float*, uint8_t*, void*);
double normalize_row(const float*, int, float*);
void chain_encode_row(const ChainView*, const float*, uint8_t*, uint8_t*);
void chain_decode(const ChainView*, const uint8_t*, float*);
void scalar_encode(const ScalarView*, const float*, uint8_t*);
void dot_tile(const float*, const float*, int, double*);
void chain_lut(const ChainView*, const float*, double*);
void quantize_lut(const double*, int, int, double*, uint8_t*, uint32_t*, QueryBounds*);
void lut_scores(const double*, const uint8_t* const*, ptrdiff_t, ptrdiff_t, int, int, double*);
void project(const float*, ptrdiff_t, int, int, const float*, int, float*);
double dot(const float*, const float*, int);
void pack_block(const uint8_t* const*, int, uint32_t*);
void gather_block(const uint32_t*, const int64_t*, int, int, uint32_t*);
void scan(const uint32_t*, int, int, const QueryTables*, int, int32_t*);
void scan_narrow(const uint32_t*, int, int, const QueryTables*, int, const uint16_t*, uint16_t*, uint16_t*, ptrdiff_t);
int list_rows(const uint16_t*, int, uint32_t*);
void reachable(const int32_t*, ptrdiff_t, int, const QueryBounds*, const float*, const float*, uint16_t*);

#if defined(__AVX2__) && !defined(__AVX512VBMI__)
constexpr bool kByPlace = true;
constexpr auto kScanNarrow = scan_narrow;
#else
constexpr bool kByPlace = false;
constexpr decltype(Kernels::scan_narrow) kScanNarrow = nullptr;
#endif

#define TQ_NAME_(x) #x
#define TQ_NAME(x) TQ_NAME_(x)
const Kernels table = {TQ_NAME(TQ_LEVEL), kByPlace, pack_block, gather_block,  load_tile,    load_rotated,     store_tile,
                       rotate_tile,       rotate_row, chain_scratch, chain_encode, normalize_row,    chain_encode_row,
                       chain_decode,      scalar_encode, dot_tile,   chain_lut,    quantize_lut,     lut_scores,
                       project,           dot,        scan,          kScanNarrow,   list_rows,    reachable};

}  // namespace tq::TQ_LEVEL
