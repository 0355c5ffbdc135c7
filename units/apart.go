// SPDX-License-Identifier: Apache-2.0

package units

import (
	"cmp"
	"slices"
)

// numbering is what the numbers of a store's fds say of their order. PID 1 gets
// the fds of a store one by one, with rising numbers as a rule, and puts each
// new one in front of the others; a daemon-reload turns the store round.
type numbering struct {
	numbers []int // by the entry's index; 0 where it is not known
	rising  bool  // from the first entry to the last
}

// order looks at those files of a store that are certain.
func order(files []*File) numbering {
	o := numbering{numbers: make([]int, len(files))}
	rises, last := 0, 0
	for i, f := range files {
		if f == nil {
			continue
		}
		switch o.numbers[i] = f.number; {
		case last > 0 && f.number > last:
			rises++
		case last > 0:
			rises--
		}
		last = f.number
	}
	o.rising = rises > 0
	return o
}

// misfit says how badly a number fits entry i: by how many certain numbers it
// is out of order with, and then by how far it is from the nearest.
func (o numbering) misfit(i, number int) int {
	wrong, nearest := 0, 0
	for j, known := range o.numbers {
		if known == 0 {
			continue
		}
		if (j < i) == (known < number) != o.rising {
			wrong++
		}
		if away := max(known-number, number-known); nearest == 0 || away < nearest {
			nearest = away
		}
	}
	return wrong<<32 + nearest
}

// tellApart duplicates the fds of the entries in list, which are all of one
// inode, and gives them to the entries so that the numbers fit best. What is
// left over belongs to other stores.
func (d *Duplicator) tellApart(found *numbers, list []int, entries []Entry, known numbering, files []*File, failed []error) {
	found.mu.Lock()
	defer found.mu.Unlock()
	candidates := slices.Sorted(slices.Values(found.list))
	if !known.rising {
		slices.Reverse(candidates)
	}
	taken, failure := d.takeAll(candidates, variants(list, entries))
	positions := map[int]map[int64]bool{} // by open flags, which tell files apart
	for _, f := range taken {
		if f != nil && positions[f.Flags] == nil {
			positions[f.Flags] = map[int64]bool{}
		}
		if f != nil {
			positions[f.Flags][f.Position] = true
		}
	}
	costs := make([][]int, len(list))
	for row, i := range list {
		costs[row] = make([]int, len(candidates))
		for column, f := range taken {
			costs[row][column] = impossible
			if f != nil && f.Flags == entries[i].Flags {
				costs[row][column] = known.misfit(i, f.number)
			}
		}
	}
	for row, column := range assign(costs, len(candidates)) {
		i := list[row]
		if column < 0 || costs[row][column] == impossible {
			failed[i] = cmp.Or(failure, ErrChanged)
			continue
		}
		f := taken[column]
		taken[column] = nil
		f.Guessed = len(positions[f.Flags]) > 1
		files[i] = f
		found.list = slices.DeleteFunc(found.list, func(n int) bool { return n == f.number })
	}
	for _, f := range taken {
		if f != nil {
			_ = f.FD.Close() // another entry's
		}
	}
}

// variants returns one of the entries in list for each of the open flags they have:
// nothing else that can be seen of them differs.
func variants(list []int, entries []Entry) []*Entry {
	var different []*Entry
	for _, i := range list {
		e := &entries[i]
		if !slices.ContainsFunc(different, func(other *Entry) bool { return other.Flags == e.Flags }) {
			different = append(different, e)
		}
	}
	return different
}

// takeAll duplicates each of the process's fds once that is like one of the entries;
// nil stands for another. The error is that of one that could not be had.
func (d *Duplicator) takeAll(candidates []int, like []*Entry) (taken []*File, failed error) {
	taken = make([]*File, len(candidates))
	for column, number := range candidates {
		for _, e := range like {
			f, err := d.take(number, e)
			if err != nil {
				failed = err
			}
			if f != nil {
				taken[column] = f
				break
			}
		}
	}
	return taken, failed
}

// impossible is what no sum of misfits comes near.
const impossible = 1 << 50

// assign gives each row a column of its own, later rows later columns, so that
// the sum of the costs is least. A row for which there is none has -1.
func assign(costs [][]int, columns int) []int {
	// least[r][c] is the least sum for the rows from r on in the columns from
	// c on, when a row may go without for the price of what is impossible.
	least := make([][]int, len(costs)+1)
	least[len(costs)] = make([]int, columns+1)
	for r := len(costs) - 1; r >= 0; r-- {
		least[r] = make([]int, columns+1)
		least[r][columns] = least[r+1][columns] + impossible
		for c := columns - 1; c >= 0; c-- {
			least[r][c] = min(least[r][c+1], least[r+1][c]+impossible, least[r+1][c+1]+costs[r][c])
		}
	}
	given := make([]int, len(costs))
	for r, c := 0, 0; r < len(costs); {
		switch {
		case c < columns && least[r][c] == least[r+1][c+1]+costs[r][c]:
			given[r] = c
			r, c = r+1, c+1
		case c < columns && least[r][c] == least[r][c+1]:
			c++
		default:
			given[r] = -1
			r++
		}
	}
	return given
}
