// What gptq.py and coordinate_descent.py, with group_quantizer.py and codebooks.py, do to 128 columns
// of many rows with many torch operations, in one launch, one thread a row; and the inner loops of
// fits/shortlists.py and scale_refit.py. No thread knows of another.
//
// Letters as there: L inputs, N rows of each, K patterns on a shortlist. Rows lie side by side,
// [..., N]; T is the upper triangle of an input's Hessian on eight columns.

#define GROUP 8
#define BLOCK 128
#define TINY 1.17549435e-38f

// This thread's input and row.
#define THIS_ROW(rows)                                            \
    const long n = (long)blockIdx.x * blockDim.x + threadIdx.x;   \
    const long input = blockIdx.y;                                \
    if (n >= (rows)) return;

// Numbers of rows, [L, columns, N].
template <class Number> struct Columns {
    Number *at;
    int by_input, by_column;
    __device__ Number &operator()(long input, long column, long n) const {
        return at[input * by_input + column * by_column + n];
    }
};

// The rows of a matrix of each input, [L, 128, 128]; they begin at whole groups.
struct Block {
    const float *at;
    int by_input, by_row;
    __device__ const float *row(long input, int i, int first) const {
        return at + input * by_input + (long)i * by_row + first;
    }
};

// A matrix of each input and group, [L, 16, 8, 8], whatever its strides.
struct Groups {
    const float *at;
    int by_input, by_group, by_row, by_column;
    __device__ float operator()(long input, int g, int i, int j) const {
        return at[input * by_input + (long)g * by_group + i * by_row + j * by_column];
    }
};

// Eight numbers += what has happened in the columns before them times the matrix.
__device__ void add_products(Block matrix, long input, int first, const float *before, float *sums) {
#pragma unroll 4
    for (int i = 0; i < first; i++) {
        const float4 *row = (const float4 *)matrix.row(input, i, first);
        const float4 low = row[0], high = row[1];
        const float number = before[i];
        sums[0] = fmaf(low.x, number, sums[0]);
        sums[1] = fmaf(low.y, number, sums[1]);
        sums[2] = fmaf(low.z, number, sums[2]);
        sums[3] = fmaf(low.w, number, sums[3]);
        sums[4] = fmaf(high.x, number, sums[4]);
        sums[5] = fmaf(high.y, number, sums[5]);
        sums[6] = fmaf(high.z, number, sums[6]);
        sums[7] = fmaf(high.w, number, sums[7]);
    }
}

// Whole numbers between the two ends of a row, [L, N] each.
struct Even {
    const float *low, *high;
    __device__ float nearest(long own, float number, short *code) const {
        const float level = fminf(fmaxf(rintf(number), low[own]), high[own]);
        *code = (short)level;
        return level;
    }
};

// The nearest of uneven levels, by one lookup (tables.py); what is no number gets any of them.
struct Uneven {
    const float *values;
    const unsigned char *codes;
    int lowest, fineness, count;
    __device__ float nearest(long own, float number, short *code) const {
        const float place = (number - lowest) * fineness;
        const int cell = (int)fminf(fmaxf(place, 0.0f), (float)(count - 1));
        *code = codes[cell];
        return values[cell];
    }
};

// LevelQuantizer.propose for a row: steps, their inverses and offsets are [16, L, N].
template <class Levels> struct LevelQuantizer {
    enum { CODES = GROUP };
    Levels levels;
    const float *step, *inverse, *offset;
    __device__ void propose(const float *target, Groups triangles, long input, int g, long own,
                            long place, short *codes, float *rounded) const {
        float wanted[GROUP], value[GROUP];
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            value[j] = wanted[j] = (target[j] - offset[place]) * inverse[place];
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
            const float level = levels.nearest(own, value[j], codes + j);
            rounded[j] = fmaf(level, step[place], offset[place]);
#pragma unroll
            for (int k = j + 1; k < GROUP; k++) {
                const float share = triangles(input, g, j, k) / triangles(input, g, k, k);
                value[k] = fmaf(share, wanted[j] - level, value[k]);
            }
        }
    }
};

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

// One of the numbers of a pattern, four of which are in a word.
__device__ float in_pattern(const unsigned int *pattern, int i) {
    return (float)(signed char)(pattern[i / 4] >> 8 * (i % 4) & 255);
}

// PatternQuantizer.propose for a row, patterns of M weights: steps, and which part of the codebook,
// are [16, L, N]. The last code is the mask of the signs, where there are signs.
template <int M, int K, bool SIGNED> struct PatternQuantizer {
    enum { CODES = GROUP / M + SIGNED };
    const float *steps, *parts;
    const short *shortlists;
    const unsigned int *patterns;
    int lowest, spacing, count, cells_of_part, even;
    __device__ void propose(const float *wanted, Groups triangles, long input, int g, long own,
                            long place, short *codes, float *rounded) const {
        const float step = steps[place];
        const int part = (int)parts[place] * cells_of_part;
        float t[GROUP][GROUP], target[GROUP], sign[GROUP], miss[GROUP];
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            target[i] = wanted[i];
            sign[i] = 1.0f;
#pragma unroll
            for (int j = i; j < GROUP; j++) t[i][j] = triangles(input, g, i, j);
        }
        if (SIGNED) choose_signs(target, t, 2.0f * lowest * step, even, sign);
#pragma unroll
        for (int from = 0; from < GROUP; from += M) {
            // what the first pattern missed by, as far as the second can make up for it:
            // x = miss Tf T⁻¹
#pragma unroll
            for (int i = 0; i < from; i++) {
                float carry[M];
#pragma unroll
                for (int j = 0; j < M; j++) {
                    float left = t[i][from + j];
#pragma unroll
                    for (int k = 0; k < j; k++)
                        left = fmaf(-carry[k], t[from + k][from + j], left);
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
            const long listed = (long)(cell + part) * K;
            float least = 0.0f;
            int best = -1;
            for (int k = 0; k < K; k++) {
                const unsigned int *pattern = patterns + (listed + k) * (M / 4);
                float here[M], cost = 0.0f;
#pragma unroll
                for (int i = 0; i < M; i++)
                    here[i] = fmaf(-in_pattern(pattern, i), unit[i], target[from + i]);
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
            codes[from / M] = shortlists[listed + best];
            const unsigned int *pattern = patterns + (listed + best) * (M / 4);
#pragma unroll
            for (int i = 0; i < M; i++) {
                rounded[from + i] = in_pattern(pattern, i) * unit[i];
                miss[from + i] = target[from + i] - rounded[from + i];
            }
        }
        if (!SIGNED) return;
        codes[GROUP / M] = 0;
#pragma unroll
        for (int i = 0; i < GROUP; i++) codes[GROUP / M] |= (short)(sign[i] < 0.0f) << i;
    }
};

// gptq.py's block for a row: codes, levels, what is missed, and what that costs.
template <class Quantizer>
__device__ void feed_back(Quantizer quantizer, Columns<const float> weights,
                          Columns<const float> targets, Block carry, Groups triangles, int groups,
                          int rows, Columns<short> codes, Columns<float> levels,
                          Columns<float> errors, float *costs) {
    THIS_ROW(rows)
    const long own = input * rows + n, by_group = (long)gridDim.y * rows;
    float missed[BLOCK], cost = costs[own];
    for (int g = 0; g < groups; g++) {
        const int first = g * GROUP;
        float target[GROUP], level[GROUP];
        short code[Quantizer::CODES];
#pragma unroll
        for (int j = 0; j < GROUP; j++) target[j] = targets(input, first + j, n);
        add_products(carry, input, first, missed, target);
        quantizer.propose(target, triangles, input, g, own, g * by_group + own, code, level);
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i <= j; i++)
                sum = fmaf(triangles(input, g, i, j), target[i] - level[i], sum);
            cost = fmaf(sum, sum, cost);
            missed[first + j] = weights(input, first + j, n) - level[j];
            errors(input, first + j, n) = missed[first + j];
            levels(input, first + j, n) = level[j];
        }
#pragma unroll
        for (int k = 0; k < Quantizer::CODES; k++)
            codes(input, g * Quantizer::CODES + k, n) = code[k];
    }
    costs[own] = cost;
}

// coordinate_descent.py's block for a row. Pulls are H E of before; the other three are changed.
template <class Quantizer>
__device__ void descend(Quantizer quantizer, Columns<const float> pulls, Block hessian,
                        Groups triangles, Groups inverses, int groups, int rows,
                        Columns<short> codes, Columns<float> levels, Columns<float> errors) {
    THIS_ROW(rows)
    const long own = input * rows + n, by_group = (long)gridDim.y * rows;
    float moved[BLOCK];
    for (int g = 0; g < groups; g++) {
        const int first = g * GROUP;
        float pull[GROUP], old[GROUP], target[GROUP], level[GROUP], step[GROUP];
        short code[Quantizer::CODES];
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
            pull[j] = pulls(input, first + j, n);
            target[j] = old[j] = levels(input, first + j, n);
        }
        add_products(hessian, input, first, moved, pull);
#pragma unroll
        for (int j = 0; j < GROUP; j++)
#pragma unroll
            for (int k = 0; k < GROUP; k++)
                target[j] = fmaf(inverses(input, g, j, k), pull[k], target[j]);
        quantizer.propose(target, triangles, input, g, own, g * by_group + own, code, level);
        // |t - o|^2 - |t - n|^2 = (n - o) (2 t - o - n), in the metric of the group's Hessian
        float gain = 0.0f;
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
            const float *row = hessian.row(input, first + j, first);
            float sum = 0.0f;
#pragma unroll
            for (int k = 0; k < GROUP; k++)
                sum = fmaf(row[k], fmaf(-2.0f, target[k], old[k] + level[k]), sum);
            step[j] = old[j] - level[j];
            gain = fmaf(sum, step[j], gain);
        }
        const bool better = gain > 0.0f;
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
            moved[first + j] = better ? step[j] : 0.0f;
            if (better) {
                levels(input, first + j, n) = level[j];
                errors(input, first + j, n) += step[j];
            }
        }
        if (better)
#pragma unroll
            for (int k = 0; k < Quantizer::CODES; k++)
                codes(input, g * Quantizer::CODES + k, n) = code[k];
    }
}

// Both for one kind of types: what its quantizer takes, and how it is made of that.
#define KERNELS(NAME, QUANTIZER, MADE, ...)                                                        \
    extern "C" __global__ void feed_back_##NAME(                                                   \
        const float *weights, int weights_by_input, int weights_by_column, const float *targets,   \
        int targets_by_input, int targets_by_column, const float *carry, int carry_by_input,       \
        int carry_by_row, const float *triangles, int of_input, int of_group, int of_row,          \
        int of_column, int groups, int rows, short *codes, int codes_by_input,                     \
        int codes_by_column, float *levels, int levels_by_input, int levels_by_column,             \
        float *errors, int errors_by_input, int errors_by_column, float *costs, __VA_ARGS__) {     \
        const QUANTIZER quantizer = MADE;                                                          \
        feed_back(quantizer, {weights, weights_by_input, weights_by_column},                       \
                  {targets, targets_by_input, targets_by_column},                                  \
                  {carry, carry_by_input, carry_by_row},                                           \
                  {triangles, of_input, of_group, of_row, of_column}, groups, rows,                \
                  {codes, codes_by_input, codes_by_column},                                        \
                  {levels, levels_by_input, levels_by_column},                                     \
                  {errors, errors_by_input, errors_by_column}, costs);                             \
    }                                                                                              \
    extern "C" __global__ void descend_##NAME(                                                     \
        const float *pulls, int pulls_by_input, int pulls_by_column, const float *hessian,         \
        int hessian_by_input, int hessian_by_row, const float *triangles, int of_input,            \
        int of_group, int of_row, int of_column, const float *inverses, int inverse_of_input,      \
        int inverse_of_group, int inverse_of_row, int inverse_of_column, int groups, int rows,     \
        short *codes, int codes_by_input, int codes_by_column, float *levels,                      \
        int levels_by_input, int levels_by_column, float *errors, int errors_by_input,             \
        int errors_by_column, __VA_ARGS__) {                                                       \
        const QUANTIZER quantizer = MADE;                                                          \
        descend(quantizer, {pulls, pulls_by_input, pulls_by_column},                               \
                {hessian, hessian_by_input, hessian_by_row},                                       \
                {triangles, of_input, of_group, of_row, of_column},                                \
                {inverses, inverse_of_input, inverse_of_group, inverse_of_row, inverse_of_column}, \
                groups, rows, {codes, codes_by_input, codes_by_column},                            \
                {levels, levels_by_input, levels_by_column},                                       \
                {errors, errors_by_input, errors_by_column});                                      \
    }
#define MADE(...) {__VA_ARGS__}
#define LINES const float *step, const float *inverse, const float *offset
#define LISTS                                                                                      \
    const float *steps, const float *parts, const short *shortlists, const unsigned int *patterns, \
        int lowest, int spacing, int count, int cells_of_part, int even
#define PATTERNS(M, K, SIGNED, NAME)                                                               \
    typedef PatternQuantizer<M, K, SIGNED> NAME##_quantizer;                                       \
    KERNELS(NAME, NAME##_quantizer,                                                                \
            MADE(steps, parts, shortlists, patterns, lowest, spacing, count, cells_of_part, even), \
            LISTS)
KERNELS(even, LevelQuantizer<Even>, MADE({low, high}, step, inverse, offset), LINES,
        const float *low, const float *high)
KERNELS(uneven, LevelQuantizer<Uneven>,
        MADE({values, places, lowest, fineness, count}, step, inverse, offset), LINES,
        const float *values, const unsigned char *places, int lowest, int fineness, int count)
PATTERNS(8, 32, true, patterns_8_signed)
PATTERNS(4, 16, true, patterns_4_signed)
PATTERNS(8, 32, false, patterns_8)

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
            const float level = in_pattern(pattern, i);
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
