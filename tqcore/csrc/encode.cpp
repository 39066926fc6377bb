#include "encode.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "aligned.h"
#include "parallel.h"

namespace tq {
namespace {

constexpr int64_t kTilesPerTask = 4;
constexpr int64_t kRowwise = 8;      // fewer rows than this do not fill a tile well

int64_t rows_at_once(int d) { return std::max<int64_t>(1, (1 << 18) / d); }  // of a task that reads each once

// Runs f(first row, rows, scratch) over tiles of sixteen rows.
template <class F>
void for_tiles(int64_t n, size_t scratch_bytes, int threads, F&& f) {
    const int64_t tiles = (n + kLanes - 1) / kLanes, tasks = (tiles + kTilesPerTask - 1) / kTilesPerTask;
    if (threads > tasks) threads = (int)tasks;
    const int64_t per_worker = threads > 1 ? kTilesPerTask : tiles;
    parallel_for(threads > 1 ? tasks : (tiles > 0), threads, [&](int64_t task) {
        const Aligned<float> scratch(scratch_bytes / sizeof(float) + 1);
        for (int64_t t = task * per_worker; t < tiles && t < (task + 1) * per_worker; ++t)
            f(t * kLanes, (int)(n - t * kLanes < kLanes ? n - t * kLanes : kLanes), scratch.get());
    });
}

size_t tile_floats(int d) { return (size_t)d * kLanes; }

void write_nibbles(const uint8_t* nibbles, int n_nibbles, int rows, uint8_t* out, int stride) {
    for (int l = 0; l < rows; ++l) {
        uint8_t* row = out + (ptrdiff_t)l * stride;
        for (int j = 0; j + 1 < n_nibbles; j += 2)
            row[j / 2] = (uint8_t)(nibbles[j * kLanes + l] | nibbles[(j + 1) * kLanes + l] << 4);
        if (n_nibbles % 2) row[n_nibbles / 2] = nibbles[(n_nibbles - 1) * kLanes + l];
    }
}

void write_bits(const uint8_t* index, int d, int bits, int rows, uint8_t* out, int stride, int bytes) {
    for (int l = 0; l < rows; ++l) {
        uint8_t* row = out + (ptrdiff_t)l * stride;
        std::memset(row, 0, bytes);
        for (int i = 0; i < d; ++i) {
            const int64_t bit = (int64_t)i * bits;
            const unsigned v = (unsigned)index[(ptrdiff_t)i * kLanes + l] << (bit % 8);
            row[bit / 8] |= (uint8_t)v;
            if (v >> 8) row[bit / 8 + 1] |= (uint8_t)(v >> 8);
        }
    }
}

void encode_tile(const Code& code, const float* y, int rows, uint8_t* codes, double* dots, int n_dots, float* yhat,
                 uint8_t* nibbles, void* scratch) {
    const Kernels& k = *kernels();
    double tile_dots[kLanes];
    for (size_t p = 0; p < code.parts.size(); ++p) {
        const ChainView& c = code.parts[p].chain->view();
        const float* part = y + tile_floats(code.parts[p].first);
        k.chain_encode(&c, part, nibbles, scratch);
        write_nibbles(nibbles, c.n_nibbles, rows, codes + code.parts[p].byte, code.code_size);
        k.chain_decode(&c, nibbles, yhat);
        k.dot_tile(part, yhat, c.d, tile_dots);
        for (int l = 0; l < rows; ++l) dots[l * n_dots + (ptrdiff_t)p] = tile_dots[l];
    }
    if (code.scalar) {
        const ScalarView& c = code.scalar->view();
        k.scalar_encode(&c, y, nibbles);
        write_bits(nibbles, c.d, c.bits, rows, codes, code.code_size, c.code_size);
        for (int i = 0; i < c.d; ++i)
            for (int l = 0; l < kLanes; ++l)
                yhat[(ptrdiff_t)i * kLanes + l] = c.centroids[nibbles[(ptrdiff_t)i * kLanes + l]];
        k.dot_tile(y, yhat, c.d, tile_dots);
        for (int l = 0; l < rows; ++l) dots[l * n_dots] = tile_dots[l];
    }
}

bool encodes_rowwise(const Code& code) {
    for (const Part& p : code.parts)
        if (p.chain->view().memory != 2) return false;
    return !code.parts.empty();
}

// What a tile does, for one row.
void encode_row(const Code& code, const RotationView* rotation, const float* x, uint8_t* codes, double* dots,
                double* norm) {
    const Kernels& k = *kernels();
    const Aligned<float> rotated(rotation ? (size_t)code.d : 0), yhat((size_t)code.d);
    const float* y = x;
    if (rotation) {
        *norm = k.normalize_row(x, code.d, rotated.get());
        k.rotate_row(rotation, rotated.get(), 0);
        y = rotated.get();
    }
    int most = 32;
    for (const Part& p : code.parts) most = std::max(most, p.chain->view().n_nibbles);
    const Aligned<uint8_t> nibbles((size_t)most + 1), back((size_t)kLanes * (size_t)most);
    for (size_t p = 0; p < code.parts.size(); ++p) {
        const ChainView& c = code.parts[p].chain->view();
        const float* part = y + code.parts[p].first;
        for (int i = 0; i < c.d; ++i) yhat.get()[i] = std::max(-6.0f, std::min(6.0f, part[i]));
        k.chain_encode_row(&c, yhat.get(), nibbles.get(), back.get());
        nibbles.get()[c.n_nibbles] = 0;
        for (int j = 0; j < c.code_size; ++j) {
            uint16_t both;
            std::memcpy(&both, nibbles.get() + 2 * j, sizeof(both));
            codes[code.parts[p].byte + j] = (uint8_t)(both | both >> 4);
        }
        decode_nibbles(c, nibbles.get(), yhat.get());
        dots[p] = k.dot(part, yhat.get(), c.d);
    }
}

}  // namespace

void normalize_rows(const float* x, int64_t n, int d, float* y, double* norms, int threads) {
    for_tiles(n, tile_floats(d) * sizeof(float), threads, [&](int64_t first, int rows, float* tile) {
        double tile_norms[kLanes];
        kernels()->load_tile(x + first * d, d, rows, d, tile, tile_norms);
        kernels()->store_tile(tile, rows, d, y + first * d, d);
        std::memcpy(norms + first, tile_norms, sizeof(double) * rows);
    });
}

int64_t first_unfit(const float* x, int64_t n, int d, int threads) {
    const int64_t rows = rows_at_once(d);
    std::atomic<int64_t> first{n};
    parallel_for((n + rows - 1) / rows, threads, [&](int64_t task) {
        for (int64_t i = task * rows; i < std::min(n, (task + 1) * rows); ++i) {
            if (kernels()->dot(x + i * d, x + i * d, d) <= (double)FLT_MAX) continue;
            for (int64_t found = first; i < found && !first.compare_exchange_weak(found, i);) {}
            return;
        }
    });
    return first < n ? first.load() : -1;
}

void row_dots(const float* x, const float* y, int64_t n, int d, double* out, int threads) {
    const int64_t rows = rows_at_once(d);
    parallel_for((n + rows - 1) / rows, threads, [&](int64_t task) {
        for (int64_t i = task * rows; i < std::min(n, (task + 1) * rows); ++i)
            out[i] = kernels()->dot(x + i * d, y + i * d, d);
    });
}

void rotate_rows(const RotationView& rotation, const float* x, int64_t n, float* y, bool inverse, int threads) {
    const int d = rotation.d;
    if (n < kRowwise) {
        if (y != x) std::memcpy(y, x, sizeof(float) * (size_t)(n * d));
        for (int64_t i = 0; i < n; ++i) kernels()->rotate_row(&rotation, y + i * d, inverse);
        return;
    }
    for_tiles(n, tile_floats(d) * sizeof(float), threads, [&](int64_t first, int rows, float* tile) {
        kernels()->load_rotated(x + first * d, d, rows, d, tile);
        kernels()->rotate_tile(&rotation, tile, inverse);
        kernels()->store_tile(tile, rows, d, y + first * d, d);
    });
}

void rotate_queries(const RotationView& rotation, bool unit, const float* x, int64_t n, float* y, double* squares,
                    int threads) {
    const int d = rotation.d;
    const int64_t rows = rows_at_once(d);
    const auto dot = kernels()->dot;
    parallel_for((n + rows - 1) / rows, threads, [&](int64_t task) {
        for (int64_t i = task * rows; i < std::min(n, (task + 1) * rows); ++i) {
            const float* from = x + i * d;
            float* to = y + i * d;
            squares[i] = dot(from, from, d);
            if (!unit || squares[i] == 0) {
                std::memcpy(to, from, sizeof(float) * (size_t)d);
                continue;
            }
            const double norm = std::sqrt(squares[i]);
            for (int k = 0; k < d; ++k) to[k] = (float)((double)from[k] / norm);
            squares[i] = dot(to, to, d);
        }
    });
    rotate_rows(rotation, y, n, y, false, threads);
}

void project_rows(const float* x, int64_t n, int d, const float* m, int columns, float* out, int threads) {
    const int64_t rows = 96, tasks = (n + rows - 1) / rows;
    parallel_for(tasks, threads, [&](int64_t task) {
        const int64_t first = task * rows, count = n - first < rows ? n - first : rows;
        kernels()->project(x + first * d, d, (int)count, d, m, columns, out + first * columns);
    });
}

void encode_rows(const Code& code, const RotationView* rotation, const float* x, int64_t n, uint8_t* codes,
                 double* dots, double* norms, int threads) {
    const int d = code.d, n_dots = code.parts.size() > 1 ? (int)code.parts.size() : 1;
    if (n < kRowwise && encodes_rowwise(code)) {
        for (int64_t i = 0; i < n; ++i)
            encode_row(code, rotation, x + i * d, codes + i * code.code_size, dots + i * n_dots, norms + i);
        return;
    }
    size_t chain_bytes = 64, nibble_bytes = tile_floats(d) + 64;
    for (const Part& p : code.parts) {
        const size_t bytes = kernels()->chain_scratch(&p.chain->view()), nibbles = (size_t)p.chain->view().n_nibbles;
        if (bytes > chain_bytes) chain_bytes = bytes;
        if (nibbles * kLanes > nibble_bytes) nibble_bytes = nibbles * kLanes;
    }
    const size_t tile_bytes = tile_floats(d) * sizeof(float);
    for_tiles(n, 2 * tile_bytes + nibble_bytes + chain_bytes + 128, threads,
              [&](int64_t first, int rows, float* tile) {
                  float* yhat = tile + tile_floats(d);
                  uint8_t* nibbles = (uint8_t*)(yhat + tile_floats(d));
                  if (rotation) {
                      double tile_norms[kLanes];
                      kernels()->load_tile(x + first * d, d, rows, d, tile, tile_norms);
                      std::memcpy(norms + first, tile_norms, sizeof(double) * rows);
                      kernels()->rotate_tile(rotation, tile, 0);
                  } else {
                      kernels()->load_rotated(x + first * d, d, rows, d, tile);
                  }
                  encode_tile(code, tile, rows, codes + first * code.code_size, dots + first * n_dots, n_dots, yhat,
                              nibbles, nibbles + nibble_bytes);
              });
}

bool scalars_of(const Scalars& kind, int d, const double* norms, const double* dots, int n_dots, int64_t n,
                float* scalars) {
    const double root = std::sqrt((double)d);
    bool finite = true;
    const auto put = [&](double value) {
        *scalars = (float)value;
        finite &= std::isfinite(*scalars++);
    };
    for (int64_t i = 0; i < n; ++i) {
        const double norm = kind.unit ? (double)(norms[i] > 0) : norms[i];
        double dot = dots[i * n_dots];
        for (int p = 1; p < n_dots; ++p) dot += dots[i * n_dots + p];
        put(kind.unbiased && dot > 0 ? norm * root / dot : norm / root);
        if (kind.store_norm) put(norm * norm);
    }
    return finite;
}

void decode_rows(const Code& code, const uint8_t* codes, int64_t n, float* yhat, int threads) {
    const int64_t rows = 64, tasks = (n + rows - 1) / rows;
    parallel_for(tasks, threads, [&](int64_t task) {
        std::vector<uint8_t> nibbles(2 * (size_t)code.code_size + 16);
        for (int64_t i = task * rows; i < n && i < (task + 1) * rows; ++i)
            code.decode_row(codes + i * code.code_size, yhat + i * code.query_size(), nibbles.data());
    });
}

}  // namespace tq
