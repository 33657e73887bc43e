using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>
/// The mode pages of a unit, shared by all nexuses: current and default values, and which bits may be changed. Nothing is
/// saved: after a reset and a restart the defaults hold. Lives on one loop.
/// </summary>
internal sealed class ModePages
{
    private readonly Page[] _pages;
    private readonly Page _caching, _control;

    public ModePages(LogicalUnitOptions options)
    {
        bool hasCache = options.Durability == Durability.Flush;
        var recovery = new Page(0x01, 0, new byte[12]);
        _caching = new Page(0x08, 0, new byte[20]);
        _control = new Page(0x0A, 0, new byte[12]);
        var extension = new Page(0x0A, 1, new byte[32]);
        var exceptions = new Page(0x1C, 0, new byte[12]);
        if (hasCache)
        {
            _caching.Default[2] = 0x04; // WCE
            _caching.Changeable[2] = 0x04;
        }

        _control.Default[3] = 0x10; // QUEUE ALGORITHM MODIFIER 1: reordering is unrestricted
        _control.Default[8] = 0xFF; // BUSY TIMEOUT PERIOD: unlimited
        _control.Default[9] = 0xFF;
        _control.Changeable[2] = 0x04; // D_SENSE
        _control.Changeable[4] = 0x08; // SWP
        _control.Changeable[5] = 0x40; // TAS
        extension.Default[6] = ScsiCommand.SenseBytesMax;
        exceptions.Default[2] = 0x08; // DEXCPT: no informational exceptions
        _pages = [recovery, _caching, _control, extension, exceptions];
        Reset();
    }

    /// <summary>Writes that are answered may be volatile (WCE).</summary>
    public bool HasWriteCache => (_caching.Current[2] & 0x04) != 0;

    /// <summary>Sense data in the descriptor format (D_SENSE).</summary>
    public bool HasDescriptorSense => (_control.Current[2] & 0x04) != 0;

    /// <summary>Write protected by an initiator (SWP).</summary>
    public bool IsSoftwareProtected => (_control.Current[4] & 0x08) != 0;

    /// <summary>Commands that another nexus aborts are answered (TAS).</summary>
    public bool HasTas => (_control.Current[5] & 0x40) != 0;

    public void Reset()
    {
        foreach (Page page in _pages) page.Default.CopyTo(page.Current, 0);
    }

    /// <summary>Writes the pages asked for; -1 when there are none. Control: 0 current, 1 changeable, 2 default.</summary>
    public int Write(Span<byte> target, byte code, byte subpage, int control)
    {
        int at = 0;
        bool found = false;
        foreach (Page page in _pages)
        {
            bool wanted = code == 0x3F || page.Code == code;
            wanted &= subpage == 0xFF || (subpage == 0 && page.Subpage == 0) || (page.Subpage == subpage && code != 0x3F);
            if (!wanted) continue;
            byte[] bytes = control switch { 1 => page.Changeable, 2 => page.Default, _ => page.Current };
            bytes.CopyTo(target[at..]);
            page.Head.CopyTo(target[at..]);
            at += bytes.Length;
            found = true;
        }

        return found ? at : -1;
    }

    /// <summary>Checks a MODE SELECT list of pages that begins <paramref name="listAt"/> bytes into the parameter list, and
    /// only if all of it is right applies it. Null: done; <paramref name="changed"/> tells whether anything differs.</summary>
    public Sense? Select(ReadOnlySpan<byte> pages, int listAt, out bool changed)
    {
        changed = false;
        for (int pass = 0; pass < 2; pass++)
        {
            for (int at = 0; at < pages.Length;)
            {
                if (Fault(pages[at..], listAt + at, out Page? page, out int length) is { } fault) return fault;
                if (pass == 1) changed |= page!.Apply(pages.Slice(at, length));
                at += length;
            }
        }

        return null;
    }

    private Sense? Fault(ReadOnlySpan<byte> bytes, int listAt, out Page? page, out int length)
    {
        (page, length) = (null, 0);
        if (bytes.Length < 2) return Sense.ListLength;
        byte code = (byte)(bytes[0] & 0x3F);
        bool hasSubpage = (bytes[0] & 0x40) != 0;
        if (hasSubpage && bytes.Length < 4) return Sense.ListLength;
        foreach (Page one in _pages)
        {
            if (one.Code == code && one.Subpage == (hasSubpage ? bytes[1] : 0) && one.Subpage != 0 == hasSubpage) page = one;
        }

        if (page is null) return Sense.InList(listAt);
        ReadOnlySpan<byte> head = page.Head;
        for (int i = 1; i < head.Length; i++)
        {
            if (bytes[i] != head[i]) return Sense.InList(listAt + i);
        }

        length = page.Current.Length;
        if (bytes.Length < length) return Sense.ListLength;
        for (int i = head.Length; i < length; i++)
        {
            if (((bytes[i] ^ page.Current[i]) & ~page.Changeable[i]) != 0) return Sense.InList(listAt + i);
        }

        return null;
    }

    /// <summary>One page: code, subpage, and all its bytes (the head among them is zero and laid over when written).</summary>
    private sealed class Page(byte code, byte subpage, byte[] zeros)
    {
        public byte Code { get; } = code;

        public byte Subpage { get; } = subpage;

        public byte[] Default { get; } = zeros;

        public byte[] Current { get; } = new byte[zeros.Length];

        public byte[] Changeable { get; } = new byte[zeros.Length];

        /// <summary>Page 0: code, length. Subpage: code with SPF, subpage, length of two bytes.</summary>
        public byte[] Head { get; } = subpage == 0
            ? [code, (byte)(zeros.Length - 2)] : [(byte)(0x40 | code), subpage, 0, (byte)(zeros.Length - 4)];

        public bool Apply(ReadOnlySpan<byte> bytes)
        {
            bool changed = false;
            for (int i = Head.Length; i < Current.Length; i++)
            {
                changed |= Current[i] != bytes[i];
                Current[i] = bytes[i];
            }

            return changed;
        }
    }
}
