"""Guests to nft text. Everything here is pure: the same values give the same table.

names      what is called how, and text that is safe to put before nft
block      a bundle of chains and elements that comes and goes in one transaction
skeleton   the static part: maps, base chains, the order in which they are asked
guest      one guest's block
shared     blocks that several guests have a part in
table      the include file, and transactions between two states of the table
"""
