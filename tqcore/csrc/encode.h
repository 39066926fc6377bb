// Rows to codes and back, sixteen at a time, on several threads.
#pragma once
#include "code.h"

namespace tq {

// x [n][d] row-major; y [n][d] = x at squared length d, norms [n].
void normalize_rows(const float* x, int64_t n, int d, float* y, double* norms, int threads);
// The first row whose squared norm is no finite float32, as those that hold NaN or infinity; -1 for none.
int64_t first_unfit(const float* x, int64_t n, int d, int threads);
// out [n] = <x_i, y_i> in double.
void row_dots(const float* x, const float* y, int64_t n, int d, double* out, int threads);
void rotate_rows(const RotationView& rotation, const float* x, int64_t n, float* y, bool inverse, int threads);
// y [n][d] = x rotated, after division by their norms with `unit`; squares [n]: the squared norms of what was rotated.
void rotate_queries(const RotationView& rotation, bool unit, const float* x, int64_t n, float* y, double* squares,
                    int threads);

// out [n][columns] = x [n][d] times m [d][columns].
void project_rows(const float* x, int64_t n, int d, const float* m, int columns, float* out, int threads);

// codes [n][code_size], dots [n][max(1, parts)] = <y, yhat> per part, norms [n].
// With a rotation x is raw; without one x is already y and norms is left alone.
void encode_rows(const Code& code, const RotationView* rotation, const float* x, int64_t n, uint8_t* codes,
                 double* dots, double* norms, int threads);

// What is kept beside a code.
struct Scalars {
    bool unit;          // vectors count as of length 1, or 0
    bool unbiased;      // the scale makes inner products so; otherwise it keeps the norm
    bool store_norm;    // the squared norm follows
};

// scalars [n][1 + store_norm] of codes from norms [n] and dots [n][n_dots], one of every part; whether they are
// finite.
bool scalars_of(const Scalars& kind, int d, const double* norms, const double* dots, int n_dots, int64_t n,
                float* scalars);
void decode_rows(const Code& code, const uint8_t* codes, int64_t n, float* yhat, int threads);

}  // namespace tq
