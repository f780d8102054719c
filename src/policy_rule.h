/*-------------------------------------------------------------------------
 *
 * policy_rule.h
 *		Policies that the feed worker evaluates itself.  See policy_rule.c.
 *
 * Process: feed worker.  Memory: rules live in registry_context.  Everything
 * here needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_POLICY_RULE_H
#define CHANGEFEED_POLICY_RULE_H

#include "verdicts.h"

/*
 * What a policy demands of a row for an identity.  Identities for which it
 * demands the same of the same table share one rule, and so one verdict.
 */
typedef struct PolicyRule PolicyRule;

/*
 * A column that has to have one of some values, given by their hashes: those
 * of the hash function of the type's equality, as audience.c uses them.  Rules
 * that differ in nothing but values have the same PolicyDemand.
 */
typedef struct PolicyDemand
{
	int16 attno;
	Oid column_type; /* of the description that this is true for */
	Oid type;		 /* whose hash function is used */
	Oid collation;
} PolicyDemand;

/*
 * The rule of a description (QUERY_DESCRIBE), referenced once more.  NULL: there
 * is none, or none that is safe to evaluate here.
 */
extern PolicyRule *PolicyRuleIntern(Oid relid, const char *bytes, int length);

/* One reference more, or less; a NULL rule has none. */
extern void PolicyRuleKeep(PolicyRule *rule);
extern void PolicyRuleRelease(PolicyRule *rule);

/*
 * VERDICT_VISIBLE or VERDICT_HIDDEN.  VERDICT_UNKNOWN: query workers have to be
 * asked, since the rule does not fit the row's description, a value that it
 * needs is not known, its evaluation fails (they get the same error, and it is
 * dealt with as theirs), or changefeed.inline_policies is off.
 */
extern Verdict PolicyRuleJudge(PolicyRule *rule, TransactionMap *map, int image);

/*
 * Every row that the rule lets pass meets at least one of its demands, and for a
 * row that meets none the evaluation cannot fail, so it need not be made.  0:
 * rows cannot be told apart that way.
 */
extern int PolicyRuleDemands(const PolicyRule *rule);
extern const PolicyDemand *
PolicyRuleDemand(const PolicyRule *rule, int number, const uint32 **hashes, int *nhashes);

/* VERDICT_VISIBLE or VERDICT_HIDDEN: it is that for every row. */
extern Verdict PolicyRuleAlways(const PolicyRule *rule);

#endif /* CHANGEFEED_POLICY_RULE_H */
