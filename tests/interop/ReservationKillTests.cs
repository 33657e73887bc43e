using System.Globalization;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>Persistent reservations of the real daemon that is killed with SIGKILL right after it has answered: what was
/// asked to outlive a loss of power does, with every change, and keeps strangers out; the rest is gone.</summary>
public sealed class ReservationKillTests
{
    private const string One = "iqn.2026-11.org.example:one", Two = "iqn.2026-11.org.example:two", Stranger = "iqn.2026-11.org.example:stranger";
    private const int Good = 0, Conflict = 0x18;
    private const string Register = "00", Reserve = "01", Clear = "03", Preempt = "04";

    [Theory]
    [InlineData("io_uring")]
    [InlineData("aio")]
    public void What_was_reserved_with_aptpl_holds_after_a_kill_and_the_rest_is_gone(string engine)
    {
        using var blockd = new Blockd("kept", "64m", "--create-volume", "lost:64m", "--engine", engine);
        using (RawInitiator one = Connect(blockd, "kept", One), two = Connect(blockd, "kept", Two), brief = Connect(blockd, "lost", One))
        {
            Assert.Equal(Good, Change(brief, Register, 0, 9).Status);
            Assert.Equal(Good, Change(brief, Reserve, 9, 0, type: 1).Status);
            Assert.Equal(Good, Change(two, Register, 0, 2, aptpl: true).Status);
            Assert.Equal(Good, Change(one, Register, 0, 1, aptpl: true).Status);
            Assert.Equal(Conflict, Write(blockd, "lost", Stranger));
            Assert.Equal(Good, Change(one, Reserve, 1, 0, type: 5).Status);
        }

        KillAndRestart(blockd);
        Assert.Equal([1UL, 2UL], Keys(blockd, "kept"));
        Assert.Equal((1UL, 5), Holder(blockd, "kept"));
        Assert.Equal(Conflict, Write(blockd, "kept", Stranger));
        Assert.Equal(Good, Write(blockd, "kept", One));
        Assert.Equal(Good, Write(blockd, "kept", Two)); // registered too
        Assert.NotEqual(0, WriteOverNbd(blockd).Code);
        Assert.Empty(Keys(blockd, "lost"));
        Assert.Null(Holder(blockd, "lost"));
        Assert.Equal(Good, Write(blockd, "lost", Stranger));

        // A fencing: the answer to it is all that the cluster waits for before it writes.
        using (RawInitiator two = Connect(blockd, "kept", Two)) Assert.Equal(Good, Change(two, Preempt, 2, 1, type: 5).Status);
        KillAndRestart(blockd);
        Assert.Equal([2UL], Keys(blockd, "kept"));
        Assert.Equal((2UL, 5), Holder(blockd, "kept"));
        Assert.Equal(Conflict, Write(blockd, "kept", One));
        Assert.Equal(Good, Write(blockd, "kept", Two));

        using (RawInitiator two = Connect(blockd, "kept", Two)) Assert.Equal(Good, Change(two, Clear, 2, 0).Status);
        KillAndRestart(blockd);
        Assert.Empty(Keys(blockd, "kept"));
        Assert.Equal(Good, Write(blockd, "kept", Stranger));
        (int code, string said) = WriteOverNbd(blockd);
        Assert.True(code == 0, said);
        Assert.Equal(0, blockd.Stop());
    }

    private static void KillAndRestart(Blockd blockd)
    {
        blockd.Kill();
        blockd.Restart();
    }

    /// <summary>A session with nothing left to be told.</summary>
    private static RawInitiator Connect(Blockd blockd, string volume, string initiator)
    {
        var raw = new RawInitiator(blockd.IscsiPort, "iqn.2026-11.org.blockserver:" + volume, initiator);
        Assert.Equal(0, raw.Status);
        Assert.NotEmpty(raw.TakeAttentions());
        return raw;
    }

    /// <summary>PERSISTENT RESERVE OUT.</summary>
    private static RawReply Change(RawInitiator raw, string action, ulong key, ulong newKey, int type = 0, bool aptpl = false) => raw.Send(
        $"5F{action}{type:X2}00000000001800",
        [.. Convert.FromHexString($"{key:X16}{newKey:X16}00000000"), aptpl ? (byte)1 : (byte)0, 0, 0, 0]);

    private static int Write(Blockd blockd, string volume, string initiator)
    {
        using RawInitiator raw = Connect(blockd, volume, initiator);
        return raw.Send("2A000000000000000800", new byte[4096]).Status;
    }

    private static (int Code, string Output) WriteOverNbd(Blockd blockd) =>
        Blockd.Try("qemu-io", "-f", "raw", "-c", "write -P 7 0 4k", "-c", "flush", blockd.Uri);

    /// <summary>READ KEYS, as a stranger may too, in order.</summary>
    private static IEnumerable<ulong> Keys(Blockd blockd, string volume)
    {
        using RawInitiator raw = Connect(blockd, volume, Stranger);
        RawReply reply = raw.Send("5E000000000000010000", expected: 256);
        Assert.Equal(Good, reply.Status);
        return [.. Enumerable.Range(0, (reply.Data.Length - 8) / 8).Select(i => NumberAt(reply.Data, 8 + 8 * i)).Order()];
    }

    /// <summary>READ RESERVATION: whose key and which type, or null.</summary>
    private static (ulong Key, int Type)? Holder(Blockd blockd, string volume)
    {
        using RawInitiator raw = Connect(blockd, volume, Stranger);
        RawReply reply = raw.Send("5E010000000000010000", expected: 256);
        Assert.Equal(Good, reply.Status);
        return reply.Data.Length == 8 ? null : (NumberAt(reply.Data, 8), reply.Data[21] & 0x0F);
    }

    private static ulong NumberAt(byte[] data, int at) => ulong.Parse(Convert.ToHexString(data, at, 8), NumberStyles.HexNumber, CultureInfo.InvariantCulture);
}
