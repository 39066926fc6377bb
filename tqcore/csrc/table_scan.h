// Candidates by byte tables: sums of all rows, and bounds that decide which rows are looked at again.
#pragma once
#include <cstring>

#include "aligned.h"
#include "query_tables.h"
#include "reservoir.h"
#include "scorer.h"

namespace tq {

constexpr int kTile = 4;                         // queries scanned together
constexpr size_t kChunkBytes = 192 * 1024;       // codes that stay in the second-level cache
constexpr int64_t kFirstChunk = 8;               // blocks
constexpr int64_t kCopyCost = 4;                 // of a row into another block, in sixteenths of a block's scan
constexpr int64_t kSmallGap = 4;                 // blocks without an allowed row that are scanned along
constexpr size_t kMostPicked = 128;              // rows copied before they are scanned; few, so that copies stay in cache
constexpr int64_t kSampled = 32;                 // blocks of which a sample has one
constexpr double kNormRounding = 2.5e-7;         // widens the squared norm's part of a bound past float32 rounding

// Which rows of a block exist and are allowed, the lowest bit first.
inline uint32_t block_mask(const Rows& r, int64_t block) {
    const int64_t left = r.n - block * kLanes;
    const uint32_t inside = left >= kLanes ? 0xFFFFu : (1u << left) - 1;
    if (!r.mask) return inside;
    const int64_t bytes = (r.n + 7) / 8;
    uint32_t m = r.mask[2 * block];
    if (2 * block + 1 < bytes) m |= (uint32_t)r.mask[2 * block + 1] << 8;
    return m & inside;
}

// What happens to a row that passes a query's bounds, and the score that it must reach.
struct Sink {
    explicit Sink(int count) : thresholds(count, -INFINITY) {}
    virtual ~Sink() = default;
    // Of n rows those that reach the threshold.
    virtual void add(int query, const Candidate* rows, int n) = 0;
    float threshold(int query) const { return thresholds[(size_t)query]; }
    std::vector<float> thresholds;
};

// Queries [first, first + count) over blocks [begin, end), by tables.
class TableScan {
public:
    TableScan(const Rows& rows, const Queries& queries, int64_t first, int count)
        : rows_(rows), staged_(rows.head.share > 0), words_(staged_ ? rows.code->head_words : rows.code->words()),
          count_(count), tables_(count) {
        for (int i = 0; i < count; ++i) {
            const float* q = queries.q + (first + i) * rows.code->query_size();
            tables_[i].build(*rows.code, q, staged_ ? words_ : 0);
            tables_[i].bounds.norm_factor = (float)(-0.5 * (1.0 - kNormRounding));
            if (staged_) heads_.push_back(head_bounds(tables_[i].bounds, q));
        }
        if (staged_) {
            waiting_.resize((size_t)count);
            tails_ = Aligned<uint32_t>((size_t)(rows.code->words() - words_) * kLanes);
        }
        const int64_t fit = (int64_t)(kChunkBytes / ((size_t)words_ * 64));
        chunk_ = std::max<int64_t>(kFirstChunk, std::min<int64_t>(256, fit / 4 * 4));
        narrow_ = kernels()->scan_narrow && !rows.scale && !rows.squared_norm && words_ <= kWindow;
        for (const Tables& t : tables_) {
            weights_.push_back(t.weight(words_));
            narrow_ = narrow_ && weights_.back() > 0;
        }
        if (narrow_) sums_ = Aligned<uint16_t>(tile_size());
        else acc_ = Aligned<int32_t>(tile_size());
        pass_.assign((size_t)(kTile * masks_stride()), 0);
        listed_ = Aligned<uint32_t>((size_t)chunk_ * kLanes + 2);
        if (!rows.scale) same_.assign((size_t)(narrow_ ? 1 : chunk_) * kLanes, rows.same_scale);
    }

    const double* exact(int query) const { return tables_[(size_t)query].exact(); }

    void run(int64_t begin, int64_t end, Sink& sink) {
        // Small at first: a threshold from few rows spares most of the next ones.
        int64_t size = ran_ ? chunk_ : kFirstChunk, stop;
        ran_ = true;
        for (int64_t b = begin; b < end; b = stop, size = std::min(chunk_, 2 * size)) {
            stop = std::min(end, b + size);
            if (rows_.mask && pick(b, stop, sink)) continue;
            const uint32_t* blocks = in_place() ? rows_.blocks + b * words_ * kLanes : copy_blocks(b, stop);
            if (!rows_.mask) {
                scan_run(blocks, b, (int)(stop - b), nullptr, sink);
                continue;
            }
            for (int64_t i = 0; i < stop - b;) {
                if (!allowed_[(size_t)i]) { ++i; continue; }
                // Blocks are scanned several at a time, so a small gap is no reason to stop.
                int64_t j = i + 1;
                for (int64_t k = j; k < std::min(stop - b, j + kSmallGap); ++k)
                    if (allowed_[(size_t)k]) j = k + 1;
                scan_run(blocks + i * words_ * kLanes, b + i, (int)(j - i), &allowed_[(size_t)i], sink);
                i = j;
            }
        }
        scan_picked(sink);
        if (staged_)
            for (int i = 0; i < count_; ++i) finish(i, sink);
    }

    // Shows a sink one block in kSampled of [begin, end), at places that follow no period of the rows. Their rows are
    // numbered from 0 on.
    void sample(int64_t begin, int64_t end, Sink& sink) {
        const size_t size = (size_t)words_ * kLanes;
        const int64_t samples = (std::min(end, rows_.n / kLanes) - begin) / kSampled;
        copies_.resize(kFirstChunk * size);
        scales_.resize(kFirstChunk * kLanes);
        norms_.resize(kFirstChunk * kLanes);
        const auto row_of = [begin](int64_t sample) {
            const uint32_t place = (uint32_t)sample * 0x9E3779B1u >> 16;
            return (begin + sample * kSampled + place % kSampled) * kLanes;
        };
        for (int64_t i = 0, n; i < samples; i += n) {
            n = std::min(kFirstChunk, samples - i);
            for (int64_t at = 0; at < n; ++at) {
                const int64_t row = row_of(i + at), block = row / kLanes;
                const uint32_t* codes = in_place() ? rows_.blocks + row * words_ : copy_blocks(block, block + 1);
                std::memcpy(&copies_[(size_t)at * size], codes, size * sizeof(uint32_t));
                std::memcpy(&scales_[(size_t)at * kLanes], scales(row), kLanes * sizeof(float));
                if (rows_.squared_norm)
                    std::memcpy(&norms_[(size_t)at * kLanes], rows_.squared_norm + row, kLanes * sizeof(float));
            }
            // The next ones lie far apart, and memory is asked for them meanwhile.
            for (int64_t next = i + n; in_place() && next < std::min(i + n + kFirstChunk, samples); ++next)
                for (int w = 0; w < words_; ++w)
                    __builtin_prefetch(rows_.blocks + row_of(next) * words_ + w * kLanes, 0, 2);
            const float* norms = rows_.squared_norm ? norms_.data() : nullptr;
            scan({copies_.data(), (int)n, scales_.data(), norms, nullptr, i * kLanes, nullptr}, nullptr, sink);
        }
    }

private:
    size_t tile_size() const { return (size_t)chunk_ * kLanes * (size_t)std::min(kTile, count_); }
    ptrdiff_t masks_stride() const { return chunk_ + 3; }
    QueryBounds& bounds(int query) { return staged_ ? heads_[(size_t)query] : tables_[query].bounds; }

    // Whether what is scanned is what the stored blocks hold; otherwise it is copied.
    bool in_place() const { return rows_.blocks && (staged_ || !rows_.code->head_words); }

    // Scales of the rows from one on, up to a chunk of them; of a block where they are the same and sums are narrow.
    const float* scales(int64_t row) const { return rows_.scale ? rows_.scale + row : same_.data(); }

    // What is scanned of blocks [begin, end).
    const uint32_t* copy_blocks(int64_t begin, int64_t end) {
        const ptrdiff_t size = (ptrdiff_t)words_ * kLanes;
        const int64_t first = begin * kLanes, n = std::min(rows_.n, end * kLanes) - first;
        scratch_.resize((size_t)((end - begin) * size));
        if (!rows_.blocks) {
            const int code_size = rows_.code->code_size;
            pack_rows(scratch_.data(), words_, 0, rows_.packed + first * code_size, n, code_size);
            return scratch_.data();
        }
        // Lines as they are, and what is left of their rows in further ones.
        const ptrdiff_t head = (ptrdiff_t)rows_.code->head_words * kLanes;
        for (int64_t b = begin; b < end; ++b) {
            uint32_t* to = scratch_.data() + (b - begin) * size;
            std::memcpy(to, rows_.blocks + b * head, (size_t)head * sizeof(uint32_t));
            const uint8_t* rows[kLanes];
            for (int r = 0; r < kLanes; ++r) rows[r] = tail_of(std::min(b * kLanes + r, rows_.n - 1));
            kernels()->pack_block(rows, rows_.code->tail_size(), to + head);
        }
        return scratch_.data();
    }

    // Copies rows that are not scanned in place into a block.
    void copy_rows(const int64_t* rows, int n, uint32_t* lines) {
        const int code_size = rows_.code->code_size;
        const uint8_t* codes[kLanes];
        row_.resize((size_t)(kLanes * code_size));
        for (int i = 0; i < kLanes; ++i) {
            const int64_t row = rows[i < n ? i : 0];
            codes[i] = rows_.blocks ? &row_[(size_t)(i * code_size)] : rows_.packed + row * code_size;
            if (rows_.blocks) unpack_whole(rows_, row, &row_[(size_t)(i * code_size)]);
        }
        kernels()->pack_block(codes, std::min(code_size, 4 * words_), lines);
    }

    // Bounds of a score from the first words: unbiased once divided by their share of the energy, and uncertain by
    // as much as the rest would add and the tables lose.
    QueryBounds head_bounds(const QueryBounds& whole, const float* q) const {
        const int d = rows_.code->parts[0].chain->view().d;
        const double share = rows_.head.share, rest = kernels()->dot(q, q, d) * (1.0 - share) / share;
        QueryBounds out = whole;
        out.delta = (float)(whole.delta / share);
        out.base = (float)(whole.head_base / share);
        out.error = (float)(rows_.head.deviations * std::sqrt(rest + whole.head_variance / (share * share)));
        return out;
    }

    // Blocks side by side and what belongs to their rows.
    struct Run {
        const uint32_t* blocks;
        int n_blocks;
        const float *scale, *norms;   // of the rows from the first block's on; norms may be null
        const uint16_t* allowed;      // rows of a block, or null for all
        int64_t first;                // row number of the first row
        const int64_t* numbers;       // of the rows, where they do not follow `first`
    };

    // Fills allowed_ for blocks [begin, end). Where rows few enough are allowed, takes them to be scanned in blocks of
    // their own and returns true.
    bool pick(int64_t begin, int64_t end, Sink& sink) {
        const size_t count = (size_t)(end - begin);
        allowed_.assign(count + 3, 0);
        // Little-endian as all of the layout: a block's bits are one number.
        const int64_t whole = std::min(end, rows_.n / kLanes);
        if (whole > begin) std::memcpy(allowed_.data(), rows_.mask + 2 * begin, (size_t)(2 * (whole - begin)));
        if (whole < end) allowed_[count - 1] = (uint16_t)block_mask(rows_, end - 1);
        const auto four_blocks = [&](size_t at) {
            uint64_t bits;
            std::memcpy(&bits, &allowed_[at], sizeof(bits));
            return bits;
        };
        int64_t rows = 0, blocks = 0;
        for (size_t at = 0; at < count; at += 4) {
            const uint64_t bits = four_blocks(at);
            if (!bits) continue;
            rows += __builtin_popcountll(bits);
            for (size_t b = at; b < at + 4; ++b) blocks += allowed_[b] != 0;
        }
        // Rows of a mapped file are copied anyway.
        if (rows_.blocks && rows * (count_ + kCopyCost) >= kLanes * blocks * count_) return rows == 0;
        for (size_t at = 0; at < count; at += 4)
            for (uint64_t bits = four_blocks(at); bits; bits &= bits - 1) {
                const int64_t row = (begin + (int64_t)at) * kLanes + __builtin_ctzll(bits);
                __builtin_prefetch(scales(row));
                if (rows_.squared_norm) __builtin_prefetch(rows_.squared_norm + row);
                picked_.push_back(row);
                if (picked_.size() == kMostPicked) scan_picked(sink);
            }
        return true;
    }

    void scan_picked(Sink& sink) {
        const size_t n = picked_.size(), blocks = (n + kLanes - 1) / kLanes;
        if (n == 0) return;
        copies_.resize(blocks * (size_t)words_ * kLanes);
        scales_.assign(blocks * kLanes, 0.0f);
        norms_.assign(blocks * kLanes, 0.0f);
        picked_.resize((blocks + 1) * kLanes, picked_.back());
        for (size_t i = 0; i < n; i += kLanes) {
            const int count = (int)std::min<size_t>(kLanes, n - i);
            uint32_t* lines = &copies_[i * (size_t)words_];
            if (in_place()) kernels()->gather_block(rows_.blocks, &picked_[i], count, words_, lines);
            else copy_rows(&picked_[i], count, lines);
        }
        for (size_t i = 0; i < n; ++i) {
            scales_[i] = *scales(picked_[i]);
            if (rows_.squared_norm) norms_[i] = rows_.squared_norm[picked_[i]];
        }
        allowed_copies_.assign(blocks, 0xFFFF);
        if (n % kLanes) allowed_copies_.back() = (uint16_t)((1u << n % kLanes) - 1);
        const float* norms = rows_.squared_norm ? norms_.data() : nullptr;
        scan({copies_.data(), (int)blocks, scales_.data(), norms, allowed_copies_.data(), 0, picked_.data()}, nullptr,
             sink);
        picked_.clear();
    }

    void scan_run(const uint32_t* blocks, int64_t first_block, int n_blocks, const uint16_t* allowed, Sink& sink) {
        // A block's scales are one cache line, wanted once its codes are summed.
        for (int b = 0; b < n_blocks && rows_.scale; ++b)
            __builtin_prefetch(rows_.scale + std::min((first_block + b) * kLanes, rows_.n - 1), 0, 2);
        const int64_t row = first_block * kLanes, last = (first_block + n_blocks - 1) * kLanes;
        const float* norms = rows_.squared_norm;
        Run run{blocks, n_blocks, scales(row), norms ? norms + row : nullptr, allowed, row, nullptr};
        if (last + kLanes <= rows_.n) {
            scan(run, nullptr, sink);
            return;
        }
        // The last block may reach past the columns' end, so it is taken from a copy.
        float tail_scale[kLanes] = {}, tail_norms[kLanes] = {};
        std::memcpy(tail_scale, scales(last), sizeof(float) * (size_t)(rows_.n - last));
        if (norms) std::memcpy(tail_norms, norms + last, sizeof(float) * (size_t)(rows_.n - last));
        const uint16_t inside = (uint16_t)block_mask(rows_, first_block + n_blocks - 1);
        const Run tail{blocks + (ptrdiff_t)(n_blocks - 1) * words_ * kLanes,
                       1,
                       tail_scale,
                       norms ? tail_norms : nullptr,
                       &inside,
                       last,
                       nullptr};
        scan(run, &tail, sink);
    }

    // Scans the blocks of a run; `tail`, if given, is its last block again, with its own scales and norms.
    void scan(const Run& run, const Run* tail, Sink& sink) {
        if (run.n_blocks == 0) return;
        for (int t = 0; t < count_; t += kTile) {
            const int n = std::min(kTile, count_ - t);
            QueryTables views[kTile];
            for (int i = 0; i < n; ++i) {
                views[i] = tables_[t + i].view();
                bounds(t + i).threshold = sink.threshold(t + i);
            }
            if (narrow_) scan_narrow(run, tail, t, n, views, sink);
            else scan_wide(run, tail, t, n, views, sink);
        }
    }

    void scan_wide(const Run& run, const Run* tail, int t, int n, const QueryTables* views, Sink& sink) {
        Run head = run;
        head.n_blocks -= tail != nullptr;
        kernels()->scan(run.blocks, run.n_blocks, words_, views, n, acc_.get());
        const auto select = [&](int i, const Run& part, const int32_t* acc) {
            if (part.n_blocks == 0) return;
            kernels()->reachable(acc, n * kLanes, part.n_blocks, &bounds(t + i), part.scale, part.norms, pass_.data());
            take(t + i, part, pass_.data(), sink, [=](int b, int lane) { return acc[b * n * kLanes + lane]; });
        };
        for (int i = 0; i < n; ++i) {
            const int32_t* acc = acc_.get() + i * kLanes;
            select(i, head, acc);
            if (tail) select(i, *tail, acc + (ptrdiff_t)head.n_blocks * n * kLanes);
        }
    }

    // The least sum, without its weight, with which a row can reach a query's threshold.
    uint16_t least_sum(int query) {
        const QueryBounds& q = bounds(query);
        if (!(q.threshold > -INFINITY)) return 0;
        const double step = (double)q.delta * weights_[(size_t)query];
        // The bounds have slack for float32 arithmetic, far more than double loses here.
        const double sum = std::ceil(((double)q.threshold / rows_.same_scale - ((double)q.base + (double)q.error)) / step);
        return (uint16_t)std::clamp(sum, 0.0, (double)UINT16_MAX);
    }

    // By sums of 16 bits, which are compared as they are: where rows have no scale, a query has one limit for all.
    void scan_narrow(const Run& run, const Run* tail, int t, int n, const QueryTables* views, Sink& sink) {
        uint16_t least[kTile];
        for (int i = 0; i < n; ++i) least[i] = least_sum(t + i);
        kernels()->scan_narrow(run.blocks, run.n_blocks, words_, views, n, least, sums_.get(), pass_.data(),
                               masks_stride());
        for (int i = 0; i < n; ++i) {
            uint16_t* masks = pass_.data() + i * masks_stride();
            if (tail) masks[run.n_blocks - 1] &= *tail->allowed;
            const uint16_t* sums = sums_.get() + i * kLanes;
            const int weight = weights_[(size_t)(t + i)];
            take(t + i, run, masks, sink, [=](int b, int lane) { return weight * (int)sums[b * n * kLanes + lane]; });
        }
    }

    // Hands on the allowed rows of masks, which are zeroed up to a multiple of four blocks.
    template <class Sum>
    void take(int query, const Run& run, uint16_t* masks, Sink& sink, const Sum& sum) {
        for (int b = run.n_blocks; b % 4; ++b) masks[b] = 0;
        if (run.allowed)
            for (int b = 0; b < run.n_blocks; ++b) masks[b] &= run.allowed[b];
        const int n = kernels()->list_rows(masks, run.n_blocks, listed_.get());
        const auto row_at = [&](int i) {
            const uint32_t at = listed_.get()[i];
            return Row{run.numbers ? run.numbers[at] : run.first + at, sum((int)(at / kLanes), (int)(at % kLanes)),
                       rows_.scale ? run.scale[at] : rows_.same_scale, run.norms ? run.norms[at] : 0.0f};
        };
        if (staged_) {
            for (int i = 0; i < n; ++i) wait(query, row_at(i), sink);
            return;
        }
        const QueryBounds q = tables_[(size_t)query].bounds;
        Candidate found[kLanes];
        for (int i = 0; i < n; i += kLanes) {
            const int count = std::min(kLanes, n - i);
            for (int f = 0; f < count; ++f) found[f] = candidate(q, row_at(i + f));
            sink.add(query, found, count);
        }
    }

    // A row that passed a query's bounds, with the sum of its scanned words.
    struct Row {
        int64_t number;
        int32_t acc;
        float scale, norm;
    };

    float upper_bound(const QueryBounds& q, const Row& row) const {
        return row.scale * ((float)row.acc * q.delta + (q.base + q.error)) + row.norm * q.norm_factor;
    }

    // Rows that their first words let pass, sixteen of which are scored together.
    struct Waiting {
        Row rows[kLanes];
        float upper[kLanes];
        int n = 0;
    };

    const uint8_t* tail_of(int64_t row) const {
        if (rows_.blocks) return rows_.tails + row * rows_.code->tail_size();
        return rows_.packed + row * rows_.code->code_size + rows_.code->head_size();
    }

    void wait(int query, const Row& row, Sink& sink) {
        Waiting& w = waiting_[(size_t)query];
        // The threshold may have risen since the masks were made.
        const float upper = upper_bound(heads_[(size_t)query], row);
        if (upper < sink.threshold(query)) return;
        const uint8_t* tail = tail_of(row.number);
        for (int at = 0; at < rows_.code->tail_size(); at += 64) __builtin_prefetch(tail + at);
        w.rows[w.n] = row;
        w.upper[w.n++] = upper;
        if (w.n < kLanes) return;
        w.n = 0;
        for (int i = 0; i < kLanes; ++i) {
            if (w.upper[i] < sink.threshold(query)) continue;
            w.rows[w.n] = w.rows[i];
            w.upper[w.n++] = w.upper[i];
        }
        if (w.n == kLanes) finish(query, sink);
    }

    // Scores the rows that wait whole: what is left of them, in lines, is scanned like a block.
    void finish(int query, Sink& sink) {
        Waiting& w = waiting_[(size_t)query];
        if (w.n == 0) return;
        const int words = rows_.code->words() - words_;
        const uint8_t* tails[kLanes];
        for (int i = 0; i < kLanes; ++i) tails[i] = tail_of(w.rows[i < w.n ? i : 0].number);
        kernels()->pack_block(tails, rows_.code->tail_size(), tails_.get());
        const QueryTables rest = tables_[(size_t)query].view(words_);
        int32_t more[kLanes];
        kernels()->scan(tails_.get(), 1, words, &rest, 1, more);
        Candidate found[kLanes];
        for (int i = 0; i < w.n; ++i) {
            w.rows[i].acc += more[i];
            found[i] = candidate(tables_[(size_t)query].bounds, w.rows[i]);
        }
        sink.add(query, found, w.n);
        w.n = 0;
    }

    Candidate candidate(const QueryBounds& q, const Row& row) const {
        const float dot = (float)row.acc * q.delta;
        return {upper_bound(q, row),
                row.scale * (dot + (q.base - q.error)) - row.norm * (float)(0.5 * (1.0 + kNormRounding)), row.number};
    }

    const Rows& rows_;
    bool staged_;                                     // rows are dropped by their first words alone
    int words_, count_;                               // that are scanned of all rows; queries
    int64_t chunk_;
    bool ran_ = false;
    bool narrow_;                                     // sums are compared in 16 bits
    std::vector<Tables> tables_;
    std::vector<int> weights_;                        // of the queries' words, or 0 where they have several
    std::vector<QueryBounds> heads_;                  // of the queries, from the first words
    std::vector<Waiting> waiting_;                    // of the queries
    Aligned<uint32_t> tails_;                         // what is left of rows that wait, in lines
    std::vector<uint32_t> scratch_;                   // blocks that are not scanned in place
    std::vector<uint8_t> row_;
    Aligned<int32_t> acc_;                            // of a chunk, for the queries of a tile
    Aligned<uint16_t> sums_;                          // the same where they are narrow
    std::vector<uint16_t> pass_;                      // of the blocks of a chunk, for the queries of a tile
    Aligned<uint32_t> listed_;                        // rows of a chunk that passed
    std::vector<uint16_t> allowed_;                   // of the blocks of a chunk
    std::vector<int64_t> picked_;                     // rows that wait to be scanned in blocks of their own
    std::vector<uint32_t> copies_;                    // those blocks, and what belongs to them
    std::vector<float> scales_, norms_;
    std::vector<float> same_;                         // scales of a chunk, where no row has one of its own
    std::vector<uint16_t> allowed_copies_;
};

}  // namespace tq
