//! What becomes of a frame's VLAN tags when it is sent on: one word of a row.

/// See the constants and [`Tag::of`]. A row of zeroes keeps what tags a frame has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag(pub u16);

impl Tag {
    /// The tags stay as they are: nothing is known of the way.
    pub const KEEP: Self = Self(0);
    /// The way has no tags: those that a frame has are taken off.
    pub const NONE: Self = Self(0x8000);
    /// The rest of the word is a VLAN's number.
    const VLAN: u16 = 0xc000;

    /// The way of a VLAN, or without one.
    #[inline(always)]
    pub const fn of(vlan: Option<u16>) -> Self {
        match vlan {
            Some(id) => Self::tagged(id),
            None => Self::NONE,
        }
    }

    /// The way of a VLAN: frames have its one tag. Priority bits are left aside.
    #[inline(always)]
    pub const fn tagged(id: u16) -> Self {
        Self(Self::VLAN | id & 0xfff)
    }

    /// The VLAN, if it is one's way.
    #[inline(always)]
    pub const fn vlan(self) -> Option<u16> {
        if self.0 & Self::VLAN == Self::VLAN { Some(self.0 & 0xfff) } else { None }
    }

    /// Whether a frame with `tags` bytes of tags has to be changed for this way.
    #[inline(always)]
    pub const fn changes(self, tags: usize) -> bool {
        match self {
            Self::KEEP => false,
            Self::NONE => tags != 0,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_told_apart() {
        assert_eq!((Tag::KEEP.vlan(), Tag::NONE.vlan(), Tag::of(Some(0)).vlan()), (None, None, Some(0)));
        assert_eq!((Tag::of(Some(4094)).vlan(), Tag::of(None)), (Some(4094), Tag::NONE));
        assert!(!Tag::KEEP.changes(4) && !Tag::NONE.changes(0) && Tag::NONE.changes(4) && Tag::tagged(7).changes(4));
    }
}
