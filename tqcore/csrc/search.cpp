#include "search.h"

#include <cfloat>

#include "parallel.h"
#include "reservoir.h"
#include "scorer.h"
#include "table_scan.h"

namespace tq {
namespace {

constexpr int kGroup = 32;                       // queries that share one pass over a slice of the codes
constexpr int64_t kLeastGroup = 8;               // queries for every thread that they are divided for
constexpr int64_t kWorkPerThread = 12 << 20;     // code bytes times queries worth starting a thread for
constexpr int64_t kLeastGuessed = 32;            // results worth a sample of the rows
constexpr int64_t kLeastSlice = 32;              // blocks
constexpr int64_t kRescoredPerThread = 1 << 18;  // the same for rows scored one by one

// The same by decoding every row, for codes that are not nibble tables: the bounds are the score itself.
void decode_scan(const Rows& rows, const Queries& queries, int64_t first, int count, int64_t begin, int64_t end,
                 Sink& sink) {
    Scorer scorer(rows);
    const int size = rows.code->query_size();
    for (int64_t b = begin; b < end; ++b)
        for (uint32_t m = block_mask(rows, b); m; m &= m - 1) {
            const int64_t row = b * kLanes + __builtin_ctz(m);
            scorer.decode(row);
            for (int i = 0; i < count; ++i) {
                const double s = scorer.of_decoded(row, queries.q + (first + i) * size);
                // Rounded outwards: the exact score is compared again at the end.
                const float upper = std::nextafter((float)s, INFINITY), lower = std::nextafter((float)s, -INFINITY);
                const Candidate c{upper, lower, row};
                sink.add(i, &c, 1);
            }
        }
}

// Query groups times slices of the blocks, so that every thread has a share whatever the shape. Slices are as many as
// threads where groups do not go round, or so many that who is late does fewer of them.
struct Shares {
    Shares(const Rows& rows, int64_t nq, int wanted, bool fine) {
        blocks = (rows.n + kLanes - 1) / kLanes;
        const int64_t work = rows.n * (int64_t)rows.code->code_size * nq / kWorkPerThread + 1;
        threads = (int)std::max<int64_t>(1, std::min<int64_t>(wanted, work));
        // As many groups for each thread, of whole tiles, where there are queries enough.
        groups = (nq + kGroup - 1) / kGroup;
        if (nq >= threads * kLeastGroup) groups = (groups + threads - 1) / threads * threads;
        group = (int)std::min(nq, (nq + groups * kTile - 1) / (groups * kTile) * kTile);
        groups = (nq + group - 1) / group;
        slices = threads == 1 ? 1 : fine ? std::max<int64_t>(4, 8 * threads / groups) : groups % threads ? threads : 1;
        slices = std::max<int64_t>(1, std::min(slices, blocks / kLeastSlice));
    }
    int64_t begin(int64_t slice) const { return blocks * slice / slices; }
    int64_t blocks, groups, slices;
    int group, threads;
};

struct TopSink : Sink {
    TopSink(int count, const Reservoir& empty) : Sink(count), kept(count, empty) {}
    void add(int query, const Candidate* rows, int n) override {
        Reservoir& own = kept[(size_t)query];
        // The threshold is the sink's until the first row: it may be given.
        float threshold = thresholds[(size_t)query];
        for (int i = 0; i < n; ++i)
            if (rows[i].upper >= threshold) {
                own.add(rows[i]);
                threshold = own.threshold();
            }
        thresholds[(size_t)query] = threshold;
    }
    std::vector<Reservoir> kept;
};

// The largest few among the best lower bounds of sampled blocks. One of each: rows are often stored beside rows like
// them, so that many of a block say little of the others.
struct SampleSink : Sink {
    SampleSink(int count, int64_t rank)
        : Sink(count), best((size_t)count, {-INFINITY, -INFINITY, 0}), kept((size_t)count, Reservoir(rank)) {}
    void add(int query, const Candidate* rows, int n) override {
        Candidate& b = best[(size_t)query];
        for (int i = 0; i < n; ++i) {
            const Candidate& c = rows[i];
            if (c.upper < thresholds[(size_t)query]) continue;
            const bool same = c.row / kLanes == b.row / kLanes;
            if (!same) close(query);
            if (!same || c.lower > b.lower) b = c;
        }
    }
    // Takes a query's last block in and returns the least of the largest.
    float close(int query) {
        Reservoir& largest = kept[(size_t)query];
        largest.add(best[(size_t)query]);
        return thresholds[(size_t)query] = largest.threshold();
    }
    std::vector<Candidate> best;
    std::vector<Reservoir> kept;
};

struct RangeSink : Sink {
    explicit RangeSink(int count) : Sink(count), kept(count) {}
    void add(int query, const Candidate* rows, int n) override {
        for (int i = 0; i < n; ++i)
            if (rows[i].upper >= thresholds[(size_t)query]) kept[(size_t)query].push_back(rows[i].row);
    }
    std::vector<std::vector<int64_t>> kept;
};

// A scan of queries [first, first + count), one range of blocks after the other, and what it has found.
template <class S>
struct Search {
    template <class... Options>
    Search(const Rows& rows, const Queries& queries, int64_t first, int count, const Options&... options)
        : rows(rows), queries(queries), first(first), count(count), sink(count, options...) {
        if (rows.code->scannable()) tables = std::make_unique<TableScan>(rows, queries, first, count);
    }
    void run(int64_t begin, int64_t end) {
        if (tables) tables->run(begin, end, sink);
        else decode_scan(rows, queries, first, count, begin, end, sink);
    }
    const double* exact(int query) const { return tables ? tables->exact(query) : nullptr; }

    const Rows& rows;
    const Queries& queries;
    int64_t first;
    int count;
    S sink;
    std::unique_ptr<TableScan> tables;
};

// The search for the best k rows, whose first range of blocks can begin with a guess of what they will score.
struct TopSearch : Search<TopSink> {
    using Search::Search;

    void start(int64_t begin, int64_t end, int64_t k) {
        // Three deviations more of the sample than the k best have there: one guess in some 500 is too high.
        const double share = (double)k / kSampled;
        const int64_t rank = (int64_t)(share + 3 * std::sqrt(share) + 2);
        const bool whole = tables && !rows.mask && rows.head.share == 0;
        if (!whole || k < kLeastGuessed || end - begin < 2 * rank * kSampled) return run(begin, end);
        SampleSink sample(count, rank);
        tables->sample(begin, end, sample);
        for (int i = 0; i < count; ++i) {
            const float guess = sample.close(i);
            sink.thresholds[(size_t)i] = guess;
            sink.kept[(size_t)i].guess(guess, 2 * rank * kSampled);
        }
        run(begin, end);
        for (int i = 0; i < count; ++i) {
            if (sink.kept[(size_t)i].proven()) continue;
            Search again(rows, queries, first + i, 1, Reservoir(k));
            again.run(begin, end);
            sink.kept[(size_t)i] = std::move(again.sink.kept[0]);
            sink.thresholds[(size_t)i] = again.sink.thresholds[0];
        }
    }
};

struct Scored { double score; int64_t id, row; };

bool better(const Scored& a, const Scored& b) { return a.score != b.score ? a.score > b.score : a.id < b.id; }

float distance(const Rows& rows, const Queries& queries, int64_t query, double score) {
    if (!rows.squared_norm) return (float)(score + queries.constant[query]);
    const double d = queries.constant[query] - 2.0 * score;
    return d > 0 ? (float)d : 0.0f;
}

void score_rows(Scorer& scorer, const Rows& rows, const std::vector<int64_t>& candidates, std::vector<Scored>& out) {
    const size_t n = candidates.size();
    std::vector<double> scores(n);
    scorer(candidates.data(), n, scores.data());
    for (size_t i = 0; i < n; ++i) {
        const int64_t row = candidates[i];
        out.push_back({scores[i], rows.ids ? rows.ids[row] : row, row});
    }
}

}  // namespace

void search(const Rows& rows, const Queries& queries, int64_t k, float* distances, int64_t* ids, int threads) {
    const int64_t keep = std::min(k, rows.n);
    std::fill(ids, ids + queries.n * k, (int64_t)-1);
    std::fill(distances, distances + queries.n * k, rows.squared_norm ? FLT_MAX : -FLT_MAX);
    if (keep == 0 || queries.n == 0) return;
    // By its first layer a row can be dropped for a threshold that another order would have raised later, so the order
    // must not depend on which thread is first.
    const bool fixed = rows.head.share > 0;
    const Shares s(rows, queries.n, threads, !fixed);
    // Whole rows cost enough to ask for their threshold often.
    const Reservoir empty = fixed ? Reservoir(keep, std::max<int64_t>(4, keep / 4)) : Reservoir(keep);
    const int64_t width = fixed ? s.slices : s.threads;  // searches of a group
    std::vector<std::unique_ptr<TopSearch>> searches((size_t)(s.groups * width));
    std::vector<std::atomic<int64_t>> next((size_t)s.groups), left((size_t)s.groups);  // slices of a group
    for (auto& l : left) l = s.slices;
    const auto work = [&](int64_t worker, int64_t g, int64_t slice) {
        const int64_t first = g * s.group;
        const int count = (int)std::min<int64_t>(s.group, queries.n - first);
        auto* const group = &searches[(size_t)(g * width)];
        auto& own = group[fixed ? slice : worker];
        if (own) {
            own->run(s.begin(slice), s.begin(slice + 1));
        } else {
            own = std::make_unique<TopSearch>(rows, queries, first, count, empty);
            own->start(s.begin(slice), s.begin(slice + 1), keep);
        }
        if (--left[(size_t)g]) return;
        // The group's last slice: what no other search can outdo is scored exactly.
        Scorer scorer(rows);
        std::vector<int64_t> candidates;
        std::vector<Scored> scored;
        for (int i = 0; i < count; ++i) {
            Reservoir& all = own->sink.kept[(size_t)i];
            for (int64_t w = 0; w < width; ++w) {
                if (!group[w] || &group[w] == &own) continue;
                for (const Candidate& c : group[w]->sink.kept[(size_t)i].candidates())
                    if (c.upper >= all.threshold()) all.add(c);
            }
            // The best by their bounds first: most of the others cannot reach what these score.
            std::vector<Candidate>& found = all.candidates();
            const auto rest = found.begin() + (ptrdiff_t)best_first(found, (size_t)keep);
            candidates.clear();
            scored.clear();
            scorer.set_query(queries.q + (first + i) * rows.code->query_size(), own->exact(i));
            for (auto c = found.begin(); c != rest; ++c) candidates.push_back(c->row);
            score_rows(scorer, rows, candidates, scored);
            double least = INFINITY;
            for (const Scored& r : scored) least = std::min(least, r.score);
            candidates.clear();
            for (auto c = rest; c != found.end(); ++c)
                if ((double)c->upper >= least) candidates.push_back(c->row);
            score_rows(scorer, rows, candidates, scored);
            const size_t n = std::min<size_t>((size_t)keep, scored.size());
            std::nth_element(scored.begin(), scored.begin() + (ptrdiff_t)n, scored.end(), better);
            std::sort(scored.begin(), scored.begin() + (ptrdiff_t)n, better);
            for (size_t r = 0; r < n; ++r) {
                distances[(first + i) * k + (int64_t)r] = distance(rows, queries, first + i, scored[r].score);
                ids[(first + i) * k + (int64_t)r] = rows.positions ? scored[r].row : scored[r].id;
            }
        }
        for (int64_t w = 0; w < width; ++w) group[w].reset();
    };
    // Each thread begins with groups of its own, then helps with what is left of others.
    parallel_for(s.threads, s.threads, [&](int64_t worker) {
        for (int64_t i = 0; i < s.groups; ++i) {
            const int64_t g = (worker * s.groups / s.threads + i) % s.groups;
            for (int64_t slice; (slice = next[(size_t)g].fetch_add(1)) < s.slices;) work(worker, g, slice);
        }
    });
}

void rescore(const Rows& rows, const Queries& queries, const int64_t* candidates, int64_t width, int64_t k,
             float* distances, int64_t* ids, int threads) {
    std::fill(ids, ids + queries.n * k, (int64_t)-1);
    std::fill(distances, distances + queries.n * k, rows.squared_norm ? FLT_MAX : -FLT_MAX);
    const int size = rows.code->query_size();
    const int64_t share = 16, tasks = (queries.n + share - 1) / share;
    const int64_t work = width * (int64_t)rows.code->code_size * queries.n / kRescoredPerThread + 1;
    parallel_for(tasks, (int)std::min<int64_t>(threads, work), [&](int64_t task) {
        Scorer scorer(rows);
        std::vector<int64_t> chosen;
        for (int64_t i = task * share; i < std::min(queries.n, (task + 1) * share); ++i) {
            chosen.clear();
            for (int64_t c = 0; c < width; ++c)
                if (candidates[i * width + c] >= 0) chosen.push_back(candidates[i * width + c]);
            if (chosen.empty()) continue;
            Tables tables;
            if (rows.code->scannable()) tables.build_exact(*rows.code, queries.q + i * size);
            scorer.set_query(queries.q + i * size, rows.code->scannable() ? tables.exact() : nullptr);
            std::vector<Scored> scored;
            score_rows(scorer, rows, chosen, scored);
            const size_t n = std::min<size_t>((size_t)k, scored.size());
            std::partial_sort(scored.begin(), scored.begin() + (ptrdiff_t)n, scored.end(), better);
            for (size_t r = 0; r < n; ++r) {
                distances[i * k + (int64_t)r] = distance(rows, queries, i, scored[r].score);
                ids[i * k + (int64_t)r] = scored[r].id;
            }
        }
    });
}

std::vector<std::vector<Hit>> range_search(const Rows& rows, const Queries& queries, float radius, int threads) {
    std::vector<std::vector<Hit>> hits((size_t)queries.n);
    if (rows.n == 0 || queries.n == 0) return hits;
    const Shares s(rows, queries.n, threads, false);
    const bool l2 = rows.squared_norm;
    std::mutex guard;
    parallel_for(s.groups * s.slices, s.threads, [&](int64_t task) {
        const int64_t g = task / s.slices, slice = task % s.slices, first = g * s.group;
        const int count = (int)std::min<int64_t>(s.group, queries.n - first);
        Search<RangeSink> own(rows, queries, first, count);
        for (int i = 0; i < count; ++i) {
            const double c = queries.constant[first + i];
            const double limit = l2 ? 0.5 * (c - (double)radius) : (double)radius - c;
            own.sink.thresholds[(size_t)i] = (float)(limit - 1e-6 * (std::fabs(limit) + std::fabs(c)));
        }
        own.run(s.begin(slice), s.begin(slice + 1));
        Scorer scorer(rows);
        for (int i = 0; i < count; ++i) {
            std::vector<Hit> found;
            std::vector<Scored> scored;
            scorer.set_query(queries.q + (first + i) * rows.code->query_size(), own.exact(i));
            score_rows(scorer, rows, own.sink.kept[(size_t)i], scored);
            for (const Scored& r : scored) {
                const float d = distance(rows, queries, first + i, r.score);
                if (l2 ? d < radius : d > radius) found.push_back({d, r.id});
            }
            std::lock_guard<std::mutex> lock(guard);
            auto& all = hits[(size_t)(first + i)];
            all.insert(all.end(), found.begin(), found.end());
        }
    });
    parallel_for(queries.n, s.threads, [&](int64_t i) {
        std::sort(hits[(size_t)i].begin(), hits[(size_t)i].end(), [l2](const Hit& a, const Hit& b) {
            if (a.distance != b.distance) return l2 ? a.distance < b.distance : a.distance > b.distance;
            return a.id < b.id;
        });
    });
    return hits;
}

}  // namespace tq
