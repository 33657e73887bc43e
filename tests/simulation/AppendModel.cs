using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Tests.Simulation;

/// <summary>One append that a client asked for, and what is known of it. Its content begins with its number.</summary>
public sealed class AppendItem(uint number, AppendKey key, int lengthBytes, ulong start)
{
    /// <summary>Shortest content: the number.</summary>
    public const int LengthMin = 4;

    /// <summary>What was appended.</summary>
    public byte[] Bytes { get; } = Content(number, lengthBytes);

    /// <summary>Unique; the content begins with it.</summary>
    public uint Number => number;

    /// <summary>Who asked, and the how-manieth of his it is.</summary>
    public AppendKey Key => key;

    /// <summary>Model time of the first call.</summary>
    public ulong Start => start;

    /// <summary>Model time of the first answer that said it landed; the largest number while none did.</summary>
    public ulong End { get; set; } = ulong.MaxValue;

    /// <summary>Where it was answered to lie; null while nobody knows, or when it was seen not to be there.</summary>
    public ulong? Offset { get; set; }

    /// <summary>Calls under way, and those of which nobody knows what became.</summary>
    public int Calls { get; set; }

    /// <summary>It was under way during a rollback: it may be undone or not.</summary>
    public bool IsAmbiguous { get; set; }

    /// <summary>What is known of it now; what becomes known later is about a volume that may have gone back meanwhile.</summary>
    public AppendItem Copy() => (AppendItem)MemberwiseClone();

    private static byte[] Content(uint number, int length)
    {
        var bytes = new byte[length];
        new SeededRandom(number).Fill(bytes);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, number);
        return bytes;
    }
}

/// <summary>
/// An append-only volume as its clients may see it: what it held at the last restart or rollback, and every append asked for
/// since. What lies in it is the one, then a sequence of some of the others, each whole, each once; those that were answered
/// are among them, at the place that was answered.
/// </summary>
public sealed class AppendModel(VolumeHead head)
{
    private readonly List<AppendCall> _calls = []; // under way, in their order

    /// <summary>The head as it is when nothing is going on.</summary>
    public VolumeHead Head { get; set; } = head;

    /// <summary>The head that an unanswered or failed update asked for.</summary>
    public VolumeHead? HeadMaybe { get; set; }

    /// <summary>Creation was answered Ok, or it was seen.</summary>
    public bool IsSure { get; set; }

    /// <summary>Deletion was asked for: it may be gone.</summary>
    public bool IsDeleting { get; set; }

    /// <summary>Deletion was answered Ok, or it was seen gone.</summary>
    public bool IsGone { get; set; }

    /// <summary>A rollback or a cut is under way.</summary>
    public bool IsBusy { get; set; }

    /// <summary>A rollback is under way: what is answered may be about what was or about what is.</summary>
    public bool IsGoingBack { get; set; }

    /// <summary>A block of it cannot be read, with a good excuse: what it holds is not judged any more.</summary>
    public bool IsDamaged { get; set; }

    /// <summary>How often it went back.</summary>
    public int Rollbacks { get; set; }

    /// <summary>What it held at the last restart or rollback.</summary>
    public byte[] Settled { get; private set; } = [];

    /// <summary>Appends asked for since, in the order of their calls.</summary>
    public List<AppendItem> Items { get; private set; } = [];

    /// <summary>Appends that are in <see cref="Settled"/>, and those that are not though they were asked for: both may be asked
    /// for again.</summary>
    public List<AppendItem> Old { get; } = [];

    /// <summary>Clients, and the number of the last append of each.</summary>
    public List<(Guid Id, ulong Last)> Clients { get; } = [];

    /// <summary>At least so long: the end of what was answered.</summary>
    public ulong LengthMin => Items.Where(i => i is { Offset: not null, IsAmbiguous: false })
        .Select(i => i.Offset!.Value + (ulong)i.Bytes.Length).Append((ulong)Settled.Length).Max();

    /// <summary>Not longer than this.</summary>
    public ulong LengthMax => (ulong)Settled.Length + (ulong)Items.Sum(i => (long)i.Bytes.Length);

    /// <summary>So long as a read shows it.</summary>
    public static ulong Shown(ulong length) => Math.Max(1, (length + Units.BlockBytes - 1) / Units.BlockBytes) * Units.BlockBytes;

    /// <summary>Judges an answer that says where an append lies.</summary>
    public Violation? Landed(AppendItem item, ulong offset, ulong lengthBefore, bool isRepeat, bool wasThere, bool mayBeThere, ulong now)
    {
        if (wasThere && (!isRepeat || offset != item.Offset)) return Wrong(ViolationKind.WrongAnswer, $"{Name(item)} landed again, at {offset}");
        if (isRepeat && !mayBeThere) return Wrong(ViolationKind.WrongAnswer, $"{Name(item)} is said to have landed before, at {offset}");
        if (wasThere) return null;
        if (item.Offset is { } known && known != offset) return Wrong(ViolationKind.WrongAnswer, $"{Name(item)} is now said to lie at {offset}");
        if (!isRepeat && offset < lengthBefore) return Wrong(ViolationKind.WrongAnswer, $"{Name(item)} was put at {offset}, and {lengthBefore} bytes were there before");
        ulong end = offset + (ulong)item.Bytes.Length;
        foreach (AppendItem other in Items)
        {
            if (other == item || other.IsAmbiguous || other.Offset is not { } at) continue;
            if (at < end && offset < at + (ulong)other.Bytes.Length) return Wrong(ViolationKind.WrongAnswer, $"{Name(item)} was put at {offset}, where {Name(other)} is");
        }

        item.Offset = offset;
        item.End = Math.Min(item.End, now);
        return null;
    }

    /// <summary>An append is asked for.</summary>
    public AppendCall Call(AppendKey key)
    {
        var call = new AppendCall(key);
        if (key.Client != Guid.Empty) _calls.Add(call);
        return call;
    }

    /// <summary>It is answered. Behind one that is refused nothing of the client's that waited may land: it would be a hole.</summary>
    public Violation? Answered(AppendCall call, AppendResult result)
    {
        int at = _calls.IndexOf(call);
        if (at < 0) return null; // of a life that is over, or without a client
        _calls.RemoveAt(at);
        if (result.Outcome == AppendOutcome.Done)
        {
            return call.Behind is not { } why || result.IsRepeat ? null : Wrong(
                ViolationKind.WrongAnswer, $"number {call.Key.Sequence} of {call.Key.Client.ToString()[..4]} landed behind one that was refused ({why})");
        }

        for (; at < _calls.Count; at++)
        {
            AppendCall other = _calls[at];
            if (other.Key.Client == call.Key.Client && other.Key.Sequence > call.Key.Sequence) other.Behind ??= result.Outcome;
        }

        return null;
    }

    /// <summary>What it may hold at this moment, for a snapshot.</summary>
    public AppendModel Fork() => new(Head) { Settled = Settled, Items = [.. Items.Select(i => i.Copy())], IsDamaged = IsDamaged };

    /// <summary>Judges content up to its length: which appends lie in it, in their order. <paramref name="before"/>: what was answered
    /// before that time must be there.</summary>
    public Violation? Judge(ReadOnlySpan<byte> content, ulong before, out List<AppendItem> landed)
    {
        landed = [];
        if (content.Length < Settled.Length) return Wrong(ViolationKind.LostWrite, $"{content.Length} bytes long, and was {Settled.Length}");
        if (!content[..Settled.Length].SequenceEqual(Settled)) return Wrong(ViolationKind.WrongData, $"changed at byte {content[..Settled.Length].CommonPrefixLength(Settled)}");
        var byNumber = Items.ToDictionary(i => i.Number);
        for (int at = Settled.Length; at < content.Length;)
        {
            ReadOnlySpan<byte> rest = content[at..];
            if (rest.Length < AppendItem.LengthMin || !byNumber.Remove(BinaryPrimitives.ReadUInt32LittleEndian(rest), out AppendItem? item))
                return Wrong(ViolationKind.WrongData, $"at byte {at} of {content.Length} begins no append that may be there (or it is there twice): {Convert.ToHexString(rest[..Math.Min(8, rest.Length)])}");
            if (rest.Length < item.Bytes.Length) return Wrong(ViolationKind.TornRequest, $"{Name(item)} lies at {at} and the volume ends at {content.Length}");
            if (!rest[..item.Bytes.Length].SequenceEqual(item.Bytes))
                return Wrong(ViolationKind.TornRequest, $"{Name(item)} lies at {at}, and is another one from byte {rest.CommonPrefixLength(item.Bytes)} on");
            if (item is { Offset: { } offset, IsAmbiguous: false } && offset != (ulong)at) return Wrong(ViolationKind.WrongData, $"{Name(item)} lies at {at}");
            landed.Add(item);
            at += item.Bytes.Length;
        }

        foreach (AppendItem item in byNumber.Values)
        {
            if (item is { Offset: not null, IsAmbiguous: false } && item.End < before) return Wrong(ViolationKind.LostWrite, $"{Name(item)} is not there; {content.Length} bytes are");
        }

        return null;
    }

    /// <summary>From now on it holds this, and nothing is under way.</summary>
    public void Settle(ReadOnlySpan<byte> content, List<AppendItem> landed)
    {
        ulong at = (ulong)Settled.Length;
        foreach (AppendItem item in landed)
        {
            (item.Offset, item.IsAmbiguous) = (at, false);
            at += (ulong)item.Bytes.Length;
        }

        _calls.Clear();
        foreach (AppendItem item in Items)
        {
            item.Calls = 0;
            if (!landed.Contains(item)) (item.Offset, item.End) = (null, ulong.MaxValue);
        }

        // After a rollback nobody knows whose an ambiguous append is: its client is another one by now.
        Old.AddRange(Items.Where(i => i.Key.Client != Guid.Empty && Clients.Exists(c => c.Id == i.Key.Client)));
        Items = [];
        Settled = content.ToArray();
    }

    /// <summary>It went back, by a rollback asked for at <paramref name="start"/>. What was under way meanwhile may have come
    /// in front of it or behind.</summary>
    public void GoBack(byte[] content, ulong start)
    {
        Settled = content;
        // One that is asked for again meanwhile may be undone and land anew.
        Items.RemoveAll(i => i.End < start && i.Calls == 0);
        Items.AddRange(Old.Where(i => i.Calls > 0));
        foreach (AppendItem item in Items) item.IsAmbiguous = true;
        Old.Clear();
        Clients.Clear();
        Rollbacks++;
    }

    /// <summary>An append in words.</summary>
    public static string Name(AppendItem item) =>
        $"append {item.Number} (number {item.Key.Sequence} of {item.Key.Client.ToString()[..4]}, {item.Bytes.Length} bytes, {(item.Offset is { } at ? $"answered at {at}" : "not answered")}{(item.IsAmbiguous ? ", during a rollback" : "")})";

    private Violation Wrong(ViolationKind kind, string what) => new(kind, $"append-only volume {Head.Id}: {what}");
}

/// <summary>One call that is under way.</summary>
public sealed class AppendCall(AppendKey key)
{
    /// <summary>Who asked for what.</summary>
    public AppendKey Key => key;

    /// <summary>Why one of the same client in front of it was refused while it waited; null when none was.</summary>
    public AppendOutcome? Behind { get; set; }
}

/// <summary>A snapshot of an append-only volume as the model knows it.</summary>
public sealed class AppendSnapshot(uint volumeId, Guid uuid, ulong start)
{
    /// <summary>The volume.</summary>
    public uint VolumeId => volumeId;

    /// <summary>Its identity.</summary>
    public Guid Uuid => uuid;

    /// <summary>Model time of the call.</summary>
    public ulong Start => start;

    /// <summary>It was answered Ok, or seen.</summary>
    public bool IsSure { get; set; }

    /// <summary>Its deletion was asked for.</summary>
    public bool IsDeleting { get; set; }

    /// <summary>It was deleted, or never was.</summary>
    public bool IsGone { get; set; }

    /// <summary>What its volume held when it was answered, or when the process died.</summary>
    public AppendModel? Frozen { get; set; }

    /// <summary>What it holds, once it was seen.</summary>
    public byte[]? Content { get; set; }

    /// <summary>The rollback that keeps its volume as this one: to where; null when it is none.</summary>
    public AppendSnapshot? RollBackTo { get; set; }
}
