/*
 * cuda_states.cu — recurrent states: their layout on the device, creation, copies, the way to and from the common layout
 * of the host, and where they live. When the device has no room for another, the one that was idle longest moves to host
 * memory, and comes back when a batch needs it. begin only trades places, which allocates nothing.
 */
#include "cuda_internal.cuh"

#include <cstring>
#include <new>

void cuda_states_open(cuda_backend *be)
{
    const xl_backend_options *o = &be->opt;
    be->c_block = be->layout.c_bytes;
    if (o->state == XLSTM_I8) {
        size_t rows = (size_t)o->num_heads * o->head_qk;
        be->c_scales = xl_round_up(rows * o->head_v, XL_ALIGN);
        be->c_block = be->c_scales + xl_round_up(rows * sizeof(float), XL_ALIGN);
    }
    be->n_copy = (size_t)o->num_blocks * o->num_heads * o->head_qk;
    be->m_copy = (size_t)o->num_blocks * o->num_heads;
    be->store_bytes = be->c_block * o->num_blocks + 2 * (be->n_copy + be->m_copy) * sizeof(float);
}

/* ---- blocks of memory ------------------------------------------------------------------------------------------- */

namespace
{

typedef std::lock_guard<std::recursive_mutex> guard;

constexpr size_t RESERVE = 512u << 20; /* most that states leave free on the device, for scratch of large products */

void release_host(cuda_host_block b)
{
    if (b.pinned) cudaFreeHost(b.bytes);
    else xl_release(b.bytes);
}

/* Pinned if the system allows it: copies are faster and run by themselves. */
int add_spare(cuda_backend *be, xlstm_error *err)
{
    cuda_host_block b = {nullptr, true};
    if (cudaMallocHost(&b.bytes, be->store_bytes) != cudaSuccess) {
        (void)cudaGetLastError();
        b = {(uint8_t *)xl_alloc(be->store_bytes, nullptr), false};
    }
    if (b.bytes == nullptr) {
        return xl_fail(err, XLSTM_E_MEMORY,
                       "cuda: the device is full and moving a state to host memory needs %zu bytes there; free "
                       "sessions, or keep idle ones in files",
                       be->store_bytes);
    }
    be->spares[be->n_spares++] = b;
    return XLSTM_OK;
}

/* Keeps a block for the next state that leaves the device. */
void give_spare(cuda_backend *be, cuda_host_block b)
{
    if (be->n_spares < SPARE_BLOCKS) {
        be->spares[be->n_spares++] = b;
        return;
    }
    cudaStreamSynchronize(be->stream); /* it may be read yet */
    release_host(b);
}

void leave_list(cuda_backend *be, xl_store *s)
{
    (s->newer != nullptr ? s->newer->older : be->newest) = s->older;
    (s->older != nullptr ? s->older->newer : be->oldest) = s->newer;
    s->newer = s->older = nullptr;
}

/* As the newest. */
void join_list(cuda_backend *be, xl_store *s)
{
    s->older = be->newest;
    (be->newest != nullptr ? be->newest->newer : be->oldest) = s;
    be->newest = s;
}

/* Marks a store as used now. */
void touch(cuda_backend *be, xl_store *s)
{
    if (s->data == nullptr || s == be->newest) return;
    leave_list(be, s);
    join_list(be, s);
}

/* The least recently used store that is not in the pass under way, or NULL. */
xl_store *find_idle(const cuda_backend *be)
{
    xl_store *s = be->oldest;
    while (s != nullptr && be->holding && s->pass == be->passes) s = s->newer;
    return s;
}

/* Moves a store to the last spare block; its place on the device is the caller's. */
cudaError_t spill(cuda_backend *be, xl_store *s, uint8_t **place)
{
    cuda_host_block b = be->spares[be->n_spares - 1];
    cudaError_t code = cudaMemcpyAsync(b.bytes, s->data, be->store_bytes, cudaMemcpyDeviceToHost, be->stream);
    if (code != cudaSuccess) return code;
    be->n_spares--;
    be->n_spilled++;
    leave_list(be, s);
    *place = s->data;
    s->data = nullptr;
    s->host = b.bytes;
    s->pinned = b.pinned;
    return cudaSuccess;
}

/* A free block's place, or NULL. */
uint8_t *take_free(cuda_backend *be)
{
    xl_store *s = be->free_stores;
    if (s == nullptr) return nullptr;
    uint8_t *place = s->data;
    be->free_stores = s->older;
    delete s;
    return place;
}

/* Room on the device for a new store: free, allocated, or that of an idle store. */
int find_place(cuda_backend *be, uint8_t **place, xlstm_error *err)
{
    *place = take_free(be);
    if (*place != nullptr) return XLSTM_OK;
    uint32_t limit = be->opt.device_states;
    bool may_grow = limit == 0 || be->n_blocks < limit;
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    bool roomy = free >= be->store_bytes + XL_MIN(RESERVE, total / 32);
    xl_store *idle = find_idle(be);
    if (may_grow && (roomy || idle == nullptr)) {
        int result =
            cuda_alloc(be, (void **)place, be->store_bytes, "a session's state", idle == nullptr ? err : nullptr);
        be->n_blocks += result == XLSTM_OK;
        if (result == XLSTM_OK || idle == nullptr) return result;
    }
    if (idle == nullptr) {
        return xl_fail(err, XLSTM_E_MEMORY,
                       "cuda: a session's state: all %u on the device are in use, and device_states allows no more",
                       limit);
    }
    while (be->n_spares < 2) { /* one for this store, one to trade places with */
        int result = add_spare(be, err);
        if (result != XLSTM_OK) return result;
    }
    cudaError_t code = spill(be, idle, place);
    return code == cudaSuccess ? XLSTM_OK : cuda_fail(err, code, "moving a state to the host");
}

/* Back to the device; an idle store gives its place if no block is free. */
int load(cuda_backend *be, xl_store *s, xlstm_error *err)
{
    uint8_t *place = take_free(be);
    cudaError_t code = cudaSuccess;
    if (place == nullptr) {
        xl_store *idle = find_idle(be);
        if (idle == nullptr) {
            size_t free = 0, total = 0;
            cudaMemGetInfo(&free, &total);
            return xl_fail(
                err, XLSTM_E_MEMORY,
                "cuda: a batch of %u sessions: the device has room for %u states of %zu bytes, and %zu bytes "
                "free; evaluate fewer together",
                be->batch.n_runs, be->n_blocks, be->store_bytes, free);
        }
        code = spill(be, idle, &place);
    }
    if (code == cudaSuccess)
        code = cudaMemcpyAsync(place, s->host, be->store_bytes, cudaMemcpyHostToDevice, be->stream);
    if (code != cudaSuccess) return cuda_fail(err, code, "moving a state to the device");
    give_spare(be, {s->host, s->pinned});
    be->n_spilled--;
    s->host = nullptr;
    s->data = place;
    join_list(be, s);
    return XLSTM_OK;
}

} // namespace

void cuda_states_close(cuda_backend *be)
{
    while (be->free_stores != nullptr) cudaFree(take_free(be));
    while (be->n_spares > 0) release_host(be->spares[--be->n_spares]);
}

int cuda_states_hold(cuda_backend *be, const xl_batch *batch, xlstm_error *err)
{
    be->states_lock.lock();
    be->holding = true;
    int result = XLSTM_OK;
    for (uint32_t i = 0; i < batch->n_runs; i++) batch->runs[i].store->pass = be->passes;
    for (uint32_t i = 0; i < batch->n_runs && result == XLSTM_OK; i++) {
        xl_store *s = batch->runs[i].store;
        if (s->data == nullptr) result = load(be, s, err);
        else touch(be, s);
    }
    if (result != XLSTM_OK) cuda_states_release(be);
    return result;
}

void cuda_states_release(cuda_backend *be)
{
    be->holding = false;
    be->states_lock.unlock();
}

/* As long as nothing had to leave the device, all of it fits. */
uint32_t cuda_most_runs(xl_backend *base)
{
    cuda_backend *be = cuda_of(base);
    guard lock(be->states_lock);
    return be->n_spilled > 0 ? be->n_blocks : UINT32_MAX;
}

/* ---- states ----------------------------------------------------------------------------------------------------- */

void cuda_store_free(xl_backend *base, xl_store *s)
{
    cuda_backend *be = cuda_of(base);
    if (s == nullptr) return;
    guard lock(be->states_lock);
    if (s->data == nullptr) {
        if (cuda_enter(be, nullptr) == XLSTM_OK) give_spare(be, {s->host, s->pinned});
        be->n_spilled--;
        delete s;
        return;
    }
    leave_list(be, s);
    s->older = be->free_stores;
    be->free_stores = s;
}

int cuda_store_zero(xl_backend *base, xl_store *s, xlstm_error *err)
{
    cuda_backend *be = cuda_of(base);
    guard lock(be->states_lock);
    int result = cuda_enter(be, err);
    if (result != XLSTM_OK) return result;
    s->parity = 0;
    cudaError_t code;
    if (s->data != nullptr) {
        touch(be, s);
        code = cudaMemsetAsync(s->data, 0, be->store_bytes, be->stream);
    } else {
        code = cudaStreamSynchronize(be->stream); /* a copy to or from it may be under way */
        if (code == cudaSuccess) memset(s->host, 0, be->store_bytes);
    }
    return code == cudaSuccess ? XLSTM_OK : cuda_fail(err, code, "clearing a state");
}

int cuda_store_new(xl_backend *base, xl_store **out, xlstm_error *err)
{
    cuda_backend *be = cuda_of(base);
    guard lock(be->states_lock);
    *out = nullptr;
    int result = cuda_enter(be, err);
    if (result != XLSTM_OK) return result;
    xl_store *s = new (std::nothrow) xl_store();
    if (s == nullptr) return xl_fail(err, XLSTM_E_MEMORY, "cuda: out of memory");
    result = find_place(be, &s->data, err);
    if (result != XLSTM_OK) {
        delete s;
        return result;
    }
    join_list(be, s);
    result = cuda_store_zero(base, s, err);
    if (result != XLSTM_OK) {
        cuda_store_free(base, s);
        return result;
    }
    *out = s;
    return XLSTM_OK;
}

int cuda_store_copy(xl_backend *base, xl_store *to, const xl_store *from, xlstm_error *err)
{
    cuda_backend *be = cuda_of(base);
    guard lock(be->states_lock);
    int result = cuda_enter(be, err);
    if (result != XLSTM_OK) return result;
    cudaError_t code;
    if (to->data == nullptr && from->data == nullptr) {
        code = cudaStreamSynchronize(be->stream); /* copies to or from them may be under way */
        if (code == cudaSuccess) memcpy(to->host, from->host, be->store_bytes);
    } else {
        touch(be, to);
        code =
            cudaMemcpyAsync(to->data != nullptr ? to->data : to->host, from->data != nullptr ? from->data : from->host,
                            be->store_bytes, cudaMemcpyDefault, be->stream);
    }
    to->parity = from->parity;
    return code == cudaSuccess ? XLSTM_OK : cuda_fail(err, code, "copying a state");
}

/* ---- host layout ------------------------------------------------------------------------------------------------ */

namespace
{

/* n bytes of a state, `offset` behind its beginning, to or from the caller's memory. Enqueued; if the state is in host
 * memory the caller has waited for the stream. */
cudaError_t transfer(cuda_backend *be, const xl_store *s, size_t offset, void *bytes, size_t n, bool read)
{
    if (s->data == nullptr) {
        uint8_t *at = s->host + offset;
        memcpy(read ? bytes : at, read ? at : bytes, n);
        return cudaSuccess;
    }
    uint8_t *at = s->data + offset;
    return read ? cudaMemcpyAsync(bytes, at, n, cudaMemcpyDeviceToHost, be->stream)
                : cudaMemcpyAsync(at, bytes, n, cudaMemcpyHostToDevice, be->stream);
}

/* The C of one block. `room` holds a block as it lies on the device; for int8, whose scales the host has behind each row. */
cudaError_t transfer_c(cuda_backend *be, const xl_store *s, uint32_t block, uint8_t *host, uint8_t *room, bool read)
{
    const xl_state_layout *l = &be->layout;
    if (be->opt.state != XLSTM_I8) return transfer(be, s, block * be->c_block, host, l->c_bytes, read);
    size_t dv = l->head_v, rows = (size_t)l->num_heads * l->head_qk;
    cudaError_t code = cudaSuccess;
    if (read) {
        code = transfer(be, s, block * be->c_block, room, be->c_block, true);
        if (code == cudaSuccess) code = cudaStreamSynchronize(be->stream);
        memset(host + rows * l->c_row_bytes, 0, l->c_bytes - rows * l->c_row_bytes);
    } else {
        memset(room, 0, be->c_block);
    }
    for (size_t r = 0; r < rows && code == cudaSuccess; r++) {
        uint8_t *row = host + r * l->c_row_bytes, *levels = room + r * dv,
                *scale = room + be->c_scales + r * sizeof(float);
        memcpy(read ? row : levels, read ? levels : row, dv);
        memcpy(read ? row + dv : scale, read ? scale : row + dv, sizeof(float));
    }
    if (!read) {
        code = transfer(be, s, block * be->c_block, room, be->c_block, false);
        if (code == cudaSuccess) code = cudaStreamSynchronize(be->stream); /* the next block needs the room */
    }
    return code;
}

/* The current copies of n and m, as float32: n [n_copy], then m [m_copy]. */
cudaError_t transfer_small(cuda_backend *be, const xl_store *s, float *small, bool read)
{
    size_t n = cuda_n_at(be, s->parity), m = cuda_m_at(be, s->parity);
    cudaError_t code = transfer(be, s, n, small, be->n_copy * sizeof(float), read);
    if (code == cudaSuccess) code = transfer(be, s, m, small + be->n_copy, be->m_copy * sizeof(float), read);
    if (code == cudaSuccess) code = cudaStreamSynchronize(be->stream);
    return code;
}

/* n and m of the host layout from, or to, float32. */
void convert_small(const cuda_backend *be, uint8_t *host, float *small, bool read)
{
    const xl_state_layout *l = &be->layout;
    for (uint32_t b = 0; b < l->num_blocks; b++) {
        if (read) memset(host + b * l->block_bytes + l->c_bytes, 0, l->n_bytes + l->m_bytes);
        for (uint32_t h = 0; h < l->num_heads; h++) {
            size_t head = (size_t)b * l->num_heads + h;
            float *n = small + head * l->head_qk, *m = small + be->n_copy + head;
            uint8_t *n_host = host + xl_state_n_offset(l, b, h), *m_host = host + xl_state_m_offset(l, b, h);
            memcpy(read ? (void *)m_host : m, read ? (void *)m : m_host, sizeof(float));
            if (l->n_dtype == XLSTM_F32) {
                memcpy(read ? (void *)n_host : n, read ? (void *)n : n_host, l->head_qk * sizeof(float));
                continue;
            }
            for (uint32_t i = 0; i < l->head_qk; i++) {
                uint16_t narrow = read ? xl_f32_to_bf16(n[i]) : 0;
                memcpy(read ? (void *)(n_host + 2 * i) : &narrow, read ? (void *)&narrow : n_host + 2 * i, 2);
                if (!read) n[i] = xl_bf16_to_f32(narrow);
            }
        }
    }
}

int transfer_state(cuda_backend *be, const xl_store *s, uint8_t *host, bool read, xlstm_error *err)
{
    guard lock(be->states_lock);
    int result = cuda_enter(be, err);
    if (result != XLSTM_OK) return result;
    size_t small_bytes = xl_round_up((be->n_copy + be->m_copy) * sizeof(float), XL_ALIGN);
    float *small = (float *)xl_alloc(small_bytes + (be->opt.state == XLSTM_I8 ? be->c_block : 0), err);
    if (small == nullptr) return XLSTM_E_MEMORY;
    cudaError_t code = s->data == nullptr ? cudaStreamSynchronize(be->stream) : cudaSuccess;
    for (uint32_t b = 0; b < be->opt.num_blocks && code == cudaSuccess; b++)
        code = transfer_c(be, s, b, host + b * be->layout.block_bytes, (uint8_t *)small + small_bytes, read);
    if (!read) convert_small(be, host, small, false);
    if (code == cudaSuccess) code = transfer_small(be, s, small, read);
    if (read && code == cudaSuccess) convert_small(be, host, small, true);
    xl_release(small);
    return code == cudaSuccess ? XLSTM_OK : cuda_fail(err, code, read ? "reading a state" : "writing a state");
}

} // namespace

int cuda_store_read(xl_backend *base, const xl_store *s, void *host, xlstm_error *err)
{
    return transfer_state(cuda_of(base), s, (uint8_t *)host, true, err);
}

int cuda_store_write(xl_backend *base, xl_store *s, const void *host, xlstm_error *err)
{
    guard lock(cuda_of(base)->states_lock);
    s->parity = 0;
    touch(cuda_of(base), s);
    return transfer_state(cuda_of(base), s, (uint8_t *)host, false, err); /* only read from */
}
