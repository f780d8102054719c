/*-------------------------------------------------------------------------
 *
 * address_use.c
 *		What each address has: its sockets, and its handshakes of late.
 *
 * A table by address.  An IPv6 client can take any address of its network, so
 * such addresses count by their first 64 bits, the smallest network that is
 * given to anybody.
 *
 * Who has sockets stays; who has none is kept for as long as its handshakes of
 * late count, ten seconds.  Of these there is a largest number, above which the
 * oldest are forgotten: whoever has so many addresses meets the limit of
 * handshakes in all.  Nothing is ever searched: each new address removes up to
 * two old ones from the end of a list.
 *
 * Process: gateway.  Memory: an entry has 80 bytes; there are as many as sockets,
 * and MAX_IDLE.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "visitor.h"

#define MAX_IDLE 65536

static AddressUse **table;
static uint32_t table_size; /* a power of two */
static uint32_t n_entries;

/* Those without sockets, longest so first. */
static ListNode idle_list;
static uint32_t n_idle;

/* Nobody can choose addresses that meet in one place. */
static uint64_t secrets[2];

void
AddressUseStart(void)
{
	ListInit(&idle_list);
	table_size = 64;
	table = GatewayAllocZero(table_size * sizeof(AddressUse *));
	if (getrandom(secrets, sizeof(secrets), GRND_NONBLOCK) != (ssize_t) sizeof(secrets))
		secrets[0] = uv_hrtime();
}

static uint64_t
Mix(uint64_t x)
{
	x ^= x >> 33;
	x *= UINT64_C(0xff51afd7ed558ccd);
	x ^= x >> 33;
	x *= UINT64_C(0xc4ceb9fe1a85ec53);
	x ^= x >> 33;
	return x;
}

static uint32_t
Hash(const Address *address)
{
	uint64_t halves[2];

	memcpy(halves, address->bytes, sizeof(halves));
	return (uint32_t) Mix(Mix(halves[0] ^ secrets[0]) ^ halves[1] ^ secrets[1]);
}

static void
Grow(void)
{
	AddressUse **old = table;
	uint32_t old_size = table_size;
	uint32_t i;

	table_size *= 2;
	table = GatewayAllocZero(table_size * sizeof(AddressUse *));
	for (i = 0; i < old_size; i++)
	{
		while (old[i] != NULL)
		{
			AddressUse *use = old[i];
			AddressUse **place = &table[Hash(&use->address) & (table_size - 1)];

			old[i] = use->next;
			use->next = *place;
			*place = use;
		}
	}
	free(old);
}

static void
Forget(AddressUse *use)
{
	AddressUse **place = &table[Hash(&use->address) & (table_size - 1)];

	while (*place != use)
		place = &(*place)->next;
	*place = use->next;
	if (ListContains(&use->idle))
	{
		ListRemove(&use->idle);
		n_idle--;
	}
	n_entries--;
	free(use);
}

static void
ForgetOld(void)
{
	int i;

	for (i = 0; i < 2 && !ListIsEmpty(&idle_list); i++)
	{
		AddressUse *use = ListElement(idle_list.next, AddressUse, idle);

		if (use->handshakes > NowNs() && n_idle < MAX_IDLE)
			break;
		Forget(use);
	}
}

/* One more socket of that address. */
AddressUse *
AddressUseTake(const Address *address)
{
	Address key = *address;
	AddressUse *use;
	AddressUse **place;

	if (!AddressIsV4(address))
		memset(key.bytes + 8, 0, 8);
	for (use = table[Hash(&key) & (table_size - 1)]; use != NULL; use = use->next)
	{
		if (memcmp(&use->address, &key, sizeof(key)) == 0)
			break;
	}
	if (use == NULL)
	{
		ForgetOld();
		if (n_entries >= table_size)
			Grow();
		use = GatewayAllocZero(sizeof(AddressUse));
		use->address = key;
		place = &table[Hash(&key) & (table_size - 1)];
		use->next = *place;
		*place = use;
		n_entries++;
	}
	else if (ListContains(&use->idle))
	{
		ListRemove(&use->idle);
		n_idle--;
	}
	use->sockets++;
	return use;
}

void
AddressUseDrop(AddressUse *use)
{
	if (--use->sockets > 0)
		return;
	if (use->handshakes <= NowNs())
	{
		Forget(use);
		return;
	}
	ListAppend(&idle_list, &use->idle);
	n_idle++;
}
