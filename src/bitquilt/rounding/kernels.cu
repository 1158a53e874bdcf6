// What group_quantizer.py, codebooks.py, coordinate_descent.py and scale_refit.py do with many torch
// operations, in one launch: eight columns of many rows at once, one thread a row. No thread knows of
// another.
//
// Letters as there: L inputs, N rows of each, K patterns on a shortlist. Rows lie side by side,
// [..., N]; T is the upper triangle of an input's Hessian on those eight columns.

#define GROUP 8
#define TINY 1.17549435e-38f

// This thread's input and row, and where its first of `columns` columns is in [L, columns, N].
#define THIS_ROW(rows)                                            \
    const long n = (long)blockIdx.x * blockDim.x + threadIdx.x;   \
    const long input = blockIdx.y;                                \
    if (n >= (rows)) return;
#define FIRST(columns, rows) ((input * (columns)) * (rows) + n)

// [L, 8, 8], whatever its strides.
struct Triangles {
    const float *at;
    int by_input, by_row, by_column;
    __device__ float operator()(long input, int i, int j) const {
        return at[input * by_input + i * by_row + j * by_column];
    }
};

// Whole numbers between two ends.
struct Even {
    float low, high;
    __device__ float nearest(float number, short *code) const {
        const float level = fminf(fmaxf(rintf(number), low), high);
        *code = (short)level;
        return level;
    }
};

// The nearest of uneven levels, by one lookup (tables.py); what is no number gets any of them.
struct Uneven {
    const float *values;
    const unsigned char *codes;
    int lowest, fineness, count;
    __device__ float nearest(float number, short *code) const {
        const float place = (number - lowest) * fineness;
        const int cell = (int)fminf(fmaxf(place, 0.0f), (float)(count - 1));
        *code = codes[cell];
        return values[cell];
    }
};

// LevelQuantizer.propose for a row. Targets are [L, 8, N] of those strides, scales [L, N].
template <class Levels>
__device__ void round_row(Levels levels, long input, long n, int rows, const float *targets,
                          int by_input, int by_column, Triangles triangles, const float *step,
                          const float *inverse, const float *offset, short *codes, float *rounded) {
    const long own = input * rows + n;
    float wanted[GROUP], value[GROUP];
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
        const float target = targets[input * by_input + (long)j * by_column + n];
        value[j] = wanted[j] = (target - offset[own]) * inverse[own];
    }
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
        short code;
        const float level = levels.nearest(value[j], &code);
        const long there = FIRST(GROUP, rows) + (long)j * rows;
        codes[there] = code;
        rounded[there] = fmaf(level, step[own], offset[own]);
#pragma unroll
        for (int k = j + 1; k < GROUP; k++) {
            const float share = triangles(input, j, k) / triangles(input, k, k);
            value[k] = fmaf(share, wanted[j] - level, value[k]);
        }
    }
}

extern "C" __global__ void round_even(const float *targets, int by_input, int by_column,
                                      const float *triangles, int of_input, int of_row,
                                      int of_column, const float *step, const float *inverse,
                                      const float *offset, const float *low, const float *high,
                                      int rows, short *codes, float *rounded) {
    THIS_ROW(rows)
    const Even levels = {low[input * rows + n], high[input * rows + n]};
    const Triangles metric = {triangles, of_input, of_row, of_column};
    round_row(levels, input, n, rows, targets, by_input, by_column, metric, step, inverse, offset,
              codes, rounded);
}

extern "C" __global__ void round_uneven(const float *targets, int by_input, int by_column,
                                        const float *triangles, int of_input, int of_row,
                                        int of_column, const float *step, const float *inverse,
                                        const float *offset, const float *values,
                                        const unsigned char *places, int lowest, int fineness,
                                        int count, int rows, short *codes, float *rounded) {
    THIS_ROW(rows)
    const Uneven levels = {values, places, lowest, fineness, count};
    const Triangles metric = {triangles, of_input, of_row, of_column};
    round_row(levels, input, n, rows, targets, by_input, by_column, metric, step, inverse, offset,
              codes, rounded);
}

// The signs that a type can store, choose_signs for a row: an odd minus is turned where it costs least.
__device__ void choose_signs(const float *target, const float t[GROUP][GROUP], float lowest,
                             bool even, float *sign) {
    float product = 1.0f, least = 0.0f;
    int where = -1;
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        sign[i] = target[i] < 0.0f ? -1.0f : 1.0f;
        product *= sign[i];
        float importance = 0.0f;
#pragma unroll
        for (int j = i; j < GROUP; j++) importance = fmaf(t[i][j], t[i][j], importance);
        const float magnitude = fabsf(target[i]);
        const float cost = (magnitude + lowest) * magnitude * importance;
        if (where < 0 || cost < least) {
            least = cost;
            where = i;
        }
    }
#pragma unroll
    for (int i = 0; i < GROUP; i++)
        if (even && i == where) sign[i] *= product;
}

// The rank of the magnitude of patterns nearest to a weight's at a step, one place of a cell's number.
__device__ int rank_of(float magnitude, float step, int lowest, int spacing, int count) {
    const float rank = rintf((magnitude / fmaxf(step, TINY) - lowest) / spacing);
    return (int)fminf(fmaxf(rank, 0.0f), (float)(count - 1));
}

// nearest_patterns for a row, patterns of M weights, four to a word. Codes are [L, 8 / M + 1, N],
// the mask of the signs last.
template <int M, int K>
__device__ void round_patterns(const float *targets, int by_input, int by_column,
                               Triangles triangles, const float *steps, const short *shortlists,
                               const unsigned int *patterns, int lowest, int spacing, int count,
                               bool even, int rows, short *codes, float *rounded) {
    THIS_ROW(rows)
    const float step = steps[input * rows + n];
    float t[GROUP][GROUP], target[GROUP], sign[GROUP];
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        target[i] = targets[input * by_input + (long)i * by_column + n];
#pragma unroll
        for (int j = i; j < GROUP; j++) t[i][j] = triangles(input, i, j);
    }
    choose_signs(target, t, 2.0f * lowest * step, even, sign);
    const long first_code = FIRST(GROUP / M + 1, rows), first_level = FIRST(GROUP, rows);
    float miss[GROUP];
#pragma unroll
    for (int from = 0; from < GROUP; from += M) {
        // what the first pattern missed by, as far as the second can make up for it: x = miss Tf T⁻¹
#pragma unroll
        for (int i = 0; i < from; i++) {
            float carry[M];
#pragma unroll
            for (int j = 0; j < M; j++) {
                float left = t[i][from + j];
#pragma unroll
                for (int k = 0; k < j; k++) left = fmaf(-carry[k], t[from + k][from + j], left);
                carry[j] = left / t[from + j][from + j];
                target[from + j] = fmaf(miss[i], carry[j], target[from + j]);
            }
        }
        int cell = 0;
        float unit[M];
#pragma unroll
        for (int i = 0; i < M; i++) {
            const float magnitude = target[from + i] * sign[from + i];
            cell = cell * count + rank_of(magnitude, step, lowest, spacing, count);
            unit[i] = sign[from + i] * step;
        }
        float least = 0.0f;
        int best = -1;
        for (int k = 0; k < K; k++) {
            const unsigned int *pattern = patterns + ((long)cell * K + k) * (M / 4);
            float here[M], cost = 0.0f;
#pragma unroll
            for (int i = 0; i < M; i++)
                here[i] = fmaf(-(float)(pattern[i / 4] >> 8 * (i % 4) & 255), unit[i],
                               target[from + i]);
#pragma unroll
            for (int j = 0; j < M; j++) {
                float sum = 0.0f;
#pragma unroll
                for (int i = 0; i <= j; i++) sum = fmaf(here[i], t[from + i][from + j], sum);
                cost = fmaf(sum, sum, cost);
            }
            if (best < 0 || cost < least) {
                least = cost;
                best = k;
            }
        }
        codes[first_code + (long)(from / M) * rows] = shortlists[(long)cell * K + best];
        const unsigned int *pattern = patterns + ((long)cell * K + best) * (M / 4);
#pragma unroll
        for (int i = 0; i < M; i++) {
            const float level = (float)(pattern[i / 4] >> 8 * (i % 4) & 255) * unit[i];
            rounded[first_level + (long)(from + i) * rows] = level;
            miss[from + i] = target[from + i] - level;
        }
    }
    short mask = 0;
#pragma unroll
    for (int i = 0; i < GROUP; i++) mask |= (short)(sign[i] < 0.0f) << i;
    codes[first_code + (long)(GROUP / M) * rows] = mask;
}

#define ROUND_PATTERNS(M, K)                                                                   \
    extern "C" __global__ void round_patterns_##M##_##K(                                           \
        const float *targets, int by_input, int by_column, const float *triangles, int of_input, \
        int of_row, int of_column, const float *steps, const short *shortlists,                \
        const unsigned int *patterns, int lowest, int spacing, int count, int even, int rows,  \
        short *codes, float *rounded) {                                                        \
        const Triangles metric = {triangles, of_input, of_row, of_column};                     \
        round_patterns<M, K>(targets, by_input, by_column, metric, steps, shortlists,          \
                             patterns, lowest, spacing, count, even, rows, codes, rounded);    \
    }
ROUND_PATTERNS(8, 32)
ROUND_PATTERNS(4, 16)

// The cheapest pattern on the shortlist of M weights, one thread for each of them and each step tried
// (blockIdx.y): its code, 2 sum h w g and sum h g^2. So many patterns in a row share a step.
template <int M, int K>
__device__ void cheapest_patterns(const float *magnitudes, const float *shares,
                                  const float *listed_at, const float *steps, int count_of_steps,
                                  int by_step, const short *shortlists, const unsigned int *patterns,
                                  int lowest, int spacing, int count, int rows, short *codes,
                                  float *products, float *squares) {
    THIS_ROW(rows)
    const float at = listed_at[n / by_step], step = steps[input * count_of_steps + n / by_step];
    float twice[M], share[M];
    int cell = 0;
#pragma unroll
    for (int i = 0; i < M; i++) {
        const float magnitude = magnitudes[n * M + i];
        cell = cell * count + rank_of(magnitude, at, lowest, spacing, count);
        share[i] = shares[n * M + i];
        twice[i] = magnitude * (2.0f * share[i]);
    }
    float least = 0.0f, least_product = 0.0f, least_square = 0.0f;
    int best = -1;
    for (int k = 0; k < K; k++) {
        const unsigned int *pattern = patterns + ((long)cell * K + k) * (M / 4);
        float product = 0.0f, square = 0.0f;
#pragma unroll
        for (int i = 0; i < M; i++) {
            const float level = (float)(pattern[i / 4] >> 8 * (i % 4) & 255);
            product = fmaf(level, twice[i], product);
            square = fmaf(level * level, share[i], square);
        }
        const float cost = square * step - product;
        if (best < 0 || cost < least) {
            least = cost;
            least_product = product;
            least_square = square;
            best = k;
        }
    }
    const long own = input * rows + n;
    codes[own] = shortlists[(long)cell * K + best];
    products[own] = least_product;
    squares[own] = least_square;
}

#define CHEAPEST_PATTERNS(M, K)                                                                    \
    extern "C" __global__ void cheapest_patterns_##M##_##K(                                        \
        const float *magnitudes, const float *shares, const float *listed_at, const float *steps,  \
        int count_of_steps, int by_step, const short *shortlists, const unsigned int *patterns,    \
        int lowest, int spacing, int count, int rows, short *codes, float *products,               \
        float *squares) {                                                                          \
        cheapest_patterns<M, K>(magnitudes, shares, listed_at, steps, count_of_steps, by_step,     \
                                shortlists, patterns, lowest, spacing, count, rows, codes,         \
                                products, squares);                                                \
    }
CHEAPEST_PATTERNS(8, 16)
CHEAPEST_PATTERNS(8, 32)
CHEAPEST_PATTERNS(4, 16)

// Descent's choice for a row: new codes [L, width, N] where they lower the error, else the old ones,
// and old levels less new ones. H is [L, 8, 8], targets and old levels [L, 8, N].
extern "C" __global__ void keep_better(const float *hessians, int by_input, int by_row,
                                       int by_column, const float *targets, const float *old_levels,
                                       int old_by_input, const float *new_levels,
                                       const short *old_codes, int codes_by_input,
                                       const short *new_codes, int width, int rows, short *codes,
                                       float *moved) {
    THIS_ROW(rows)
    const Triangles hessian = {hessians, by_input, by_row, by_column};
    const long first = FIRST(GROUP, rows), old_first = input * old_by_input + n;
    float between[GROUP], step[GROUP];
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        const float before = old_levels[old_first + (long)i * rows];
        const float after = new_levels[first + (long)i * rows];
        step[i] = before - after;
        between[i] = fmaf(-2.0f, targets[first + (long)i * rows], before + after);
    }
    float gain = 0.0f;
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        float pull = 0.0f;
#pragma unroll
        for (int j = 0; j < GROUP; j++) pull = fmaf(hessian(input, i, j), between[j], pull);
        gain = fmaf(pull, step[i], gain);
    }
    const bool better = gain > 0.0f;
#pragma unroll
    for (int i = 0; i < GROUP; i++) moved[first + (long)i * rows] = better ? step[i] : 0.0f;
    for (int i = 0; i < width; i++) {
        const long there = FIRST(width, rows) + (long)i * rows;
        codes[there] = better ? new_codes[there]
                              : old_codes[input * codes_by_input + (long)i * rows + n];
    }
}

// Inner products of blocks, one thread each: a [n, R, B, W] and b [R, B, W], rows of b so far apart.
extern "C" __global__ void dots(const float *a, const float *b, int b_by_row, int rows, int blocks,
                                int width, float *products) {
    const long count = (long)rows * blocks;
    THIS_ROW(count)
    const long own = input * count + n;
    const float4 *left = (const float4 *)(a + own * width);
    const float4 *right = (const float4 *)(b + n / blocks * b_by_row + n % blocks * width);
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int i = 0; i < width / 4; i++) {
        sum.x = fmaf(left[i].x, right[i].x, sum.x);
        sum.y = fmaf(left[i].y, right[i].y, sum.y);
        sum.z = fmaf(left[i].z, right[i].z, sum.z);
        sum.w = fmaf(left[i].w, right[i].w, sum.w);
    }
    products[own] = (sum.x + sum.y) + (sum.z + sum.w);
}
