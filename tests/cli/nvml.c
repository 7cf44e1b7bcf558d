/* Answers as NVML does, for the GPUs in NVML_GPUS, apart by `;`. Each is NAME|UUID|MAJOR.MINOR|TOTAL_MIB|FREE_MIB, and
   then, in any order:
     |processes=PID:NAME:MIB,...  with CUDA; a MIB of `?` is not told; a fourth part `:N` puts it on MIG device N, not 0
     |graphics=PID:NAME:MIB,...   in the list of graphics; |mps=PID:NAME:MIB,...  in that of the clients of MPS
     |hidden=CODE                 lists no processes and returns CODE instead
     |mig=NAME:UUID:TOTAL:FREE,...  MIG is on, with these devices (MIB); `-` is a place without one; `mig=` has none
     |minor=N                     of /dev/nvidiaN, else its index
     |watts=N|busy=N              what it draws, and the per cent of time that it computes; else NOT_SUPPORTED
   `lost` in place of a GPU: it has fallen off the bus, and is found out at once. `NAME|lost`: only when it is asked.
   `fails=CODE` and `NAME|fails=CODE`: the same with another error.

   NVML_INIT is what the library returns at its start. NVML_DRIVER ("580.65.06") and NVML_CUDA ("13.0") are the versions.
   NVML_FREE_FILE is a file with a line for each GPU: its free MIB at this moment (one for each place of a MIG device,
   where MIG is on), read at each question; where it has no number, the one in NVML_GPUS counts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GPUS = 8, PARTS = 8, PROCESSES = 16, LINE = 2048 };
enum {
    SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15, MISMATCH = 18
};

enum list { CUDA, GRAPHICS, MPS };

typedef unsigned long long u64;
struct process { unsigned pid, part; u64 mib; char name[64]; enum list list; };
/* A GPU, or a MIG device of one: then `whole` is the GPU, and `place` which of its devices it is. */
struct gpu {
    char name[96], uuid[80];
    int major, minor_capability, at_once, fails, hidden, mig, present;
    unsigned minor, place, processes, parts, watts, busy;
    u64 total, free;
    struct gpu *whole, *part;
    struct process process[PROCESSES];
};
struct memory { u64 total, free, used; };
struct utilization { unsigned gpu, memory; };
struct process_info { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; };

static struct gpu gpus[GPUS], parts[GPUS][PARTS];
static unsigned count;

static void end(const char *what) {
    fprintf(stderr, "nvml.c: this is no machine: %s\n", what);
    abort();
}

static void read_processes(struct gpu *g, char *text, enum list list) {
    char *rest;
    for (char *one = strtok_r(text, ",", &rest); one != NULL; one = strtok_r(NULL, ",", &rest)) {
        struct process *p = &g->process[g->processes];
        char mib[32];
        if (g->processes == PROCESSES || sscanf(one, "%u:%63[^:]:%31[^:]:%u", &p->pid, p->name, mib, &p->part) < 3)
            end(one);
        p->mib = *mib == '?' ? ~0ULL : strtoull(mib, NULL, 10);
        p->list = list;
        g->processes++;
    }
}

static void read_parts(struct gpu *g, char *text) {
    char *rest;
    g->mig = 1;
    for (char *one = strtok_r(text, ",", &rest); one != NULL; one = strtok_r(NULL, ",", &rest)) {
        struct gpu *part = &g->part[g->parts];
        if (g->parts == PARTS) end(one);
        part->whole = g;
        part->place = g->parts++;
        part->present = strcmp(one, "-") != 0;
        if (part->present &&
            sscanf(one, "%95[^:]:%79[^:]:%llu:%llu", part->name, part->uuid, &part->total, &part->free) < 4)
            end(one);
    }
}

static void read_field(struct gpu *g, char *field) {
    char *value = strchr(field, '=');
    if (value == NULL) end(field);
    *value++ = '\0';
    if (strcmp(field, "processes") == 0) read_processes(g, value, CUDA);
    else if (strcmp(field, "graphics") == 0) read_processes(g, value, GRAPHICS);
    else if (strcmp(field, "mps") == 0) read_processes(g, value, MPS);
    else if (strcmp(field, "hidden") == 0) g->hidden = atoi(value);
    else if (strcmp(field, "mig") == 0) read_parts(g, value);
    else if (strcmp(field, "minor") == 0) g->minor = (unsigned)atoi(value);
    else if (strcmp(field, "watts") == 0) g->watts = (unsigned)atoi(value);
    else if (strcmp(field, "busy") == 0) g->busy = (unsigned)atoi(value);
    else end(field);
}

static void read_gpu(struct gpu *g, char *line) {
    char *last = strrchr(line, '|'), *rest;
    char *state = last == NULL ? line : last + 1;
    int fails = strcmp(state, "lost") == 0 ? GPU_IS_LOST : strncmp(state, "fails=", 6) == 0 ? atoi(state + 6) : 0;
    if (fails) {
        g->fails = fails;
        g->at_once = last == NULL;
        return;
    }
    int used = 0;
    if (sscanf(line, "%95[^|]|%79[^|]|%d.%d|%llu|%llu%n", g->name, g->uuid, &g->major, &g->minor_capability, &g->total,
               &g->free, &used) < 6)
        end(line);
    for (char *field = strtok_r(line + used, "|", &rest); field != NULL; field = strtok_r(NULL, "|", &rest))
        read_field(g, field);
}

int nvmlInitWithFlags(unsigned flags) {
    const char *init = getenv("NVML_INIT"), *told = getenv("NVML_GPUS");
    (void)flags;
    if (init != NULL && *init) return atoi(init);
    memset(gpus, 0, sizeof gpus);
    memset(parts, 0, sizeof parts);
    for (count = 0; told != NULL && *told && count < GPUS; count++) {
        char line[LINE];
        size_t length = strcspn(told, ";");
        if (length >= sizeof line) end(told);
        snprintf(line, sizeof line, "%.*s", (int)length, told);
        gpus[count].part = parts[count];
        gpus[count].minor = count;
        read_gpu(&gpus[count], line);
        told += length + (told[length] == ';');
    }
    return SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    return code == DRIVER_NOT_LOADED ? "Driver Not Loaded" : code == GPU_IS_LOST ? "GPU is lost"
         : code == MISMATCH ? "Driver/library version mismatch" : "Unknown Error";
}

/* A version of the environment, or that it is not told. */
static const char *version(const char *name) {
    const char *told = getenv(name);
    return told != NULL && *told ? told : NULL;
}

int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    const char *told = version("NVML_DRIVER");
    if (told == NULL) return NOT_SUPPORTED;
    snprintf(text, length, "%s", told);
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion_v2(int *number) {
    const char *told = version("NVML_CUDA");
    int major, minor;
    if (told == NULL || sscanf(told, "%d.%d", &major, &minor) < 2) return NOT_SUPPORTED;
    *number = major * 1000 + minor * 10;
    return SUCCESS;
}

int nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length) {
    for (unsigned i = 0; i < count; i++)
        for (unsigned j = 0; j < gpus[i].processes; j++)
            if (gpus[i].process[j].pid == pid) {
                snprintf(name, length, "/usr/bin/%s", gpus[i].process[j].name);
                return SUCCESS;
            }
    return NOT_FOUND;
}

int nvmlDeviceGetCount_v2(unsigned *n) { *n = count; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct gpu **g) {
    if (index >= count) return INVALID_ARGUMENT;
    *g = &gpus[index];
    return (*g)->at_once ? (*g)->fails : SUCCESS;
}

/* What NVML_FREE_FILE says of it now, else what it began with. */
static u64 free_mib(struct gpu *g) {
    const char *path = version("NVML_FREE_FILE");
    FILE *file = path == NULL ? NULL : fopen(path, "r");
    char line[LINE] = "";
    if (file == NULL) return g->free;
    for (long i = (g->whole ? g->whole : g) - gpus; i >= 0; i--)
        if (fgets(line, sizeof line, file) == NULL) *line = '\0';
    fclose(file);
    char *at = line, *next;
    u64 mib = g->free;
    for (unsigned i = 0; i <= g->place; i++, at = next) {
        u64 number = strtoull(at, &next, 10);
        if (next == at) return g->free;
        mib = number;
    }
    return mib;
}

int nvmlDeviceGetMemoryInfo(struct gpu *g, struct memory *m) {
    if (g->fails) return g->fails;
    m->total = g->total << 20;
    m->free = free_mib(g) << 20;
    m->used = m->total - m->free;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(struct gpu *g, unsigned *milliwatts) {
    if (g->fails) return g->fails;
    *milliwatts = g->watts * 1000;
    return g->watts ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetUtilizationRates(struct gpu *g, struct utilization *rates) {
    if (g->fails) return g->fails;
    rates->gpu = rates->memory = g->busy;
    return g->busy ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct gpu **g) {
    for (unsigned i = 0; i < count; i++)
        if (strcmp(gpus[i].uuid, uuid) == 0) {
            *g = &gpus[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetCudaComputeCapability(struct gpu *g, int *major, int *minor) {
    if (g->fails) return g->fails;
    if (g->whole) return INVALID_ARGUMENT;
    *major = g->major;
    *minor = g->minor_capability;
    return SUCCESS;
}

int nvmlDeviceGetUUID(struct gpu *g, char *uuid, unsigned length) {
    if (g->fails) return g->fails;
    snprintf(uuid, length, "%s", g->uuid);
    return SUCCESS;
}

int nvmlDeviceGetName(struct gpu *g, char *name, unsigned length) {
    if (g->fails) return g->fails;
    snprintf(name, length, "%s", g->name);
    return SUCCESS;
}

int nvmlDeviceGetMinorNumber(struct gpu *g, unsigned *minor) {
    if (g->whole) return INVALID_ARGUMENT;
    *minor = g->minor;
    return SUCCESS;
}

/* GPUs that have no MIG say so. */
int nvmlDeviceGetMigMode(struct gpu *g, unsigned *now, unsigned *after_reset) {
    if (!g->mig) return NOT_SUPPORTED;
    *now = *after_reset = 1;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(struct gpu *g, unsigned *n) { (void)g; *n = PARTS - 1; return SUCCESS; }

int nvmlDeviceGetMigDeviceHandleByIndex(struct gpu *g, unsigned place, struct gpu **part) {
    if (place >= g->parts || !g->part[place].present) return NOT_FOUND;
    *part = &g->part[place];
    return SUCCESS;
}

/* The processes of a list; a MIG device has those on it. As NVML does, it only counts where there is no room. */
static int processes(struct gpu *g, unsigned *n, struct process_info *out, enum list list) {
    const struct gpu *whole = g->whole ? g->whole : g;
    unsigned found = 0, room = *n;
    if (whole->hidden) return whole->hidden;
    if (list != CUDA && whole->mig) return NOT_SUPPORTED;
    for (unsigned i = 0; i < whole->processes; i++) {
        const struct process *p = &whole->process[i];
        if (p->list != list || (g->whole && p->part != g->place)) continue;
        if (found < room && out != NULL) {
            struct process_info info = {p->pid, p->mib == ~0ULL ? ~0ULL : p->mib << 20, p->part, 0};
            out[found] = info;
        }
        found++;
    }
    *n = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct gpu *g, unsigned *n, struct process_info *out) {
    return processes(g, n, out, CUDA);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(struct gpu *g, unsigned *n, struct process_info *out) {
    return processes(g, n, out, GRAPHICS);
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(struct gpu *g, unsigned *n, struct process_info *out) {
    return processes(g, n, out, MPS);
}
