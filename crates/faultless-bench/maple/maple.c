/*
 * Linux's maple tree as a shared object for faultless-bench. scripts/maple.sh builds it against the sources of a kernel.
 * They are GPL, and are not part of this repository. This file is our own.
 *
 * The items are the same as in the other trees of the bench: separate objects, with an end and one more word. Each thread
 * has a list of free nodes and items, which it refills in runs from a shared list. A kernel's slab works in a similar
 * way. The allocator of the kernel's own user-space tests takes a lock and poisons memory, which would slow the tree down.
 */
#if __has_include("shared.h")
#include "shared.h"
#else /* Linux up to 6.11: the first lines of its test.h */
#include <linux/types.h>
#include <linux/bug.h>
#include <linux/kernel.h>
#include <linux/bitops.h>
#include <linux/gfp.h>
#include <linux/rcupdate.h>
#define module_init(x)
#define module_exit(x)
#define MODULE_AUTHOR(x)
#define MODULE_LICENSE(x)
#define dump_stack() abort()
#endif
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <urcu.h>
#include "linux/init.h"

#ifndef fallthrough
#define fallthrough __attribute__((__fallthrough__))
#endif
#include "maple_tree.c"

#define EXPORT __attribute__((visibility("default")))

int preempt_count;

int lockdep_is_held(const void *lock)
{
	return 1;
}

/* ---- memory */

#define RUN 64
#define SLAB (256 * 1024)

struct object {
	struct object *next;
};

struct kmem_cache {
	unsigned int number, size, align;
	pthread_mutex_t lock;
	/* Runs of RUN objects. The first word of an object points to the next one. The second word of a run's first object
	 * points to the next run. */
	struct run *runs;
};

struct run {
	struct object *next;
	struct run *next_run;
};

/* The free objects of a thread, for each cache. They fit into the static part of thread-local storage. */
static __thread __attribute__((tls_model("initial-exec"))) struct {
	struct object *objects;
	unsigned int count;
} mine[2];

static unsigned int caches;

struct kmem_cache *kmem_cache_create(const char *name, unsigned int size, unsigned int align, unsigned int flags,
				     void (*ctor)(void *))
{
	struct kmem_cache *cache = calloc(1, sizeof(*cache));

	if (!cache || caches == 2 || ctor)
		abort();
	cache->number = caches++;
	cache->size = size;
	cache->align = align ? align : sizeof(void *);
	pthread_mutex_init(&cache->lock, NULL);
	return cache;
}

/* Gives the calling thread, which has no objects, a run that another thread has freed, or new memory. */
static void refill(struct kmem_cache *cache)
{
	struct run *run;
	char *memory;
	size_t at;

	pthread_mutex_lock(&cache->lock);
	run = cache->runs;
	if (run)
		cache->runs = run->next_run;
	pthread_mutex_unlock(&cache->lock);
	if (run) {
		mine[cache->number].objects = (struct object *)run;
		mine[cache->number].count = RUN;
		return;
	}
	if (posix_memalign((void **)&memory, 4096, SLAB))
		abort();
	for (at = 0; at + cache->size <= SLAB; at += cache->size) {
		struct object *object = (struct object *)(memory + at);

		object->next = mine[cache->number].objects;
		mine[cache->number].objects = object;
		mine[cache->number].count++;
	}
}

static inline void *take(struct kmem_cache *cache)
{
	struct object *object;

	if (!mine[cache->number].objects)
		refill(cache);
	object = mine[cache->number].objects;
	mine[cache->number].objects = object->next;
	mine[cache->number].count--;
	return object;
}

/* Moves the upper of the thread's two runs to the shared list, for other threads. */
static void give_run(struct kmem_cache *cache)
{
	struct run *run = (struct run *)mine[cache->number].objects;
	struct object *last = mine[cache->number].objects;
	int i;

	for (i = 1; i < RUN; i++)
		last = last->next;
	mine[cache->number].objects = last->next;
	mine[cache->number].count -= RUN;
	last->next = NULL;
	pthread_mutex_lock(&cache->lock);
	run->next_run = cache->runs;
	cache->runs = run;
	pthread_mutex_unlock(&cache->lock);
}

static inline void give(struct kmem_cache *cache, void *object)
{
	((struct object *)object)->next = mine[cache->number].objects;
	mine[cache->number].objects = object;
	if (++mine[cache->number].count == 2 * RUN)
		give_run(cache);
}

void *kmem_cache_alloc_lru(struct kmem_cache *cache, struct list_lru *lru, int gfp)
{
	void *object = take(cache);

	if (gfp & __GFP_ZERO)
		memset(object, 0, cache->size);
	return object;
}

int kmem_cache_alloc_bulk(struct kmem_cache *cache, gfp_t gfp, size_t size, void **objects)
{
	size_t i;

	for (i = 0; i < size; i++)
		objects[i] = kmem_cache_alloc_lru(cache, NULL, gfp);
	return size;
}

void kmem_cache_free(struct kmem_cache *cache, void *object)
{
	give(cache, object);
}

void kmem_cache_free_bulk(struct kmem_cache *cache, size_t size, void **objects)
{
	size_t i;

	for (i = 0; i < size; i++)
		give(cache, objects[i]);
}

/* ---- the tree, as the bench uses it */

struct item {
	unsigned long end, word;
	struct rcu_head rcu;
};

struct bench_tree {
	struct maple_tree tree;
	int rcu;
};

static struct kmem_cache *items;

static void item_free_rcu(struct rcu_head *head)
{
	give(items, container_of(head, struct item, rcu));
}

static void item_free(struct bench_tree *tree, struct item *item)
{
	if (tree->rcu)
		call_rcu(&item->rcu, item_free_rcu);
	else
		give(items, item);
}

/* Called once in a process, before all other functions. */
EXPORT void bench_maple_init(void)
{
	rcu_init();
	maple_tree_init();
	items = kmem_cache_create("item", sizeof(struct item), 0, 0, NULL);
}

/* Each thread calls these before and after its use of trees and sections. */
EXPORT void bench_maple_thread_begins(void)
{
	rcu_register_thread();
}

EXPORT void bench_maple_thread_ends(void)
{
	rcu_unregister_thread();
}

/* Enters and leaves a read section of liburcu. */
EXPORT unsigned long bench_maple_section(const unsigned long *word)
{
	unsigned long seen;

	rcu_read_lock();
	seen = *(const volatile unsigned long *)word;
	rcu_read_unlock();
	return seen;
}

/* Makes a tree that tracks gaps, as the VMA tree of a process does. */
EXPORT struct bench_tree *bench_maple_new(int rcu)
{
	struct bench_tree *tree = calloc(1, sizeof(*tree));

	if (!tree)
		return NULL;
	tree->rcu = rcu;
	mt_init_flags(&tree->tree, MT_FLAGS_ALLOC_RANGE | (rcu ? MT_FLAGS_USE_RCU : 0));
	return tree;
}

EXPORT void bench_maple_free(struct bench_tree *tree)
{
	struct item *item;
	unsigned long index = 0;

	mt_for_each(&tree->tree, item, index, ULONG_MAX)
		item_free(tree, item);
	mtree_destroy(&tree->tree);
	rcu_barrier();
	free(tree);
}

EXPORT int bench_maple_find(struct bench_tree *tree, unsigned long index, unsigned long *end, unsigned long *word)
{
	MA_STATE(mas, &tree->tree, index, index);
	struct item *item;

	rcu_read_lock();
	item = mas_walk(&mas);
	if (item) {
		*end = item->end;
		*word = item->word;
	}
	rcu_read_unlock();
	return item != NULL;
}

EXPORT int bench_maple_insert(struct bench_tree *tree, unsigned long start, unsigned long end, unsigned long word)
{
	struct item *item = take(items);

	item->end = end;
	item->word = word;
	return mtree_store_range(&tree->tree, start, end - 1, item, GFP_KERNEL);
}

EXPORT int bench_maple_remove(struct bench_tree *tree, unsigned long start)
{
	struct item *item = mtree_erase(&tree->tree, start);

	if (item)
		item_free(tree, item);
	return item != NULL;
}
