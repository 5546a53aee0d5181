"""Guests to nft text. Everything here is pure: the same values give the same table.

maps       the named maps and sets: types, lookups, elements
block      a bundle of chains and elements that is added and removed in one transaction
static     the static part: maps, base chains, and the order of lookups
translate  the rules that translate
guest      one guest's block
slots      which chain a port leads to
shared     other blocks that several guests have a part in
table      the include file, and transactions between two states of the table
"""
