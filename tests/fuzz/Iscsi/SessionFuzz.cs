using System.Buffers.Binary;
using System.Globalization;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Fuzz.Iscsi;

/// <summary>
/// Whole sessions, stateful: a right login, then right PDUs in a right order of which some are damaged, on one or two
/// connections, against the SCSI target with a unit behind it. Never an exception or a hang, nothing kept, and another
/// session on the same unit lives on and is answered. Seeded; sessions: a 2500th of BLOCKSERVER_FUZZ_INPUTS;
/// BLOCKSERVER_FUZZ_SEED runs one seed.
/// </summary>
public sealed class SessionFuzz : IIscsiTargets
{
    private const string Name = "iqn.2026-11.org.example:disk";

    private static readonly int Sessions =
        (int.TryParse(Environment.GetEnvironmentVariable("BLOCKSERVER_FUZZ_INPUTS"), CultureInfo.InvariantCulture, out int inputs)
            ? inputs : 500_000) / 2500;

    public IscsiAuthentication? Discovery => null;

    public IscsiLookup Find(string targetName, string initiatorName, string peer) => targetName == Name
        ? new(IscsiLoginStatus.Success, new IscsiTargetEntry { Name = Name }) : new(IscsiLoginStatus.NotFound);

    public IReadOnlyList<IscsiListing> List(string initiatorName, string? user, string peer) => [new(Name, ["127.0.0.1:3260,1"])];

    [Fact]
    public void Damaged_sessions_neither_throw_hang_leak_nor_disturb_another()
    {
        int good = 0, survived = 0;
        string? only = Environment.GetEnvironmentVariable("BLOCKSERVER_FUZZ_SEED");
        ulong first = only is null ? 1 : ulong.Parse(only, CultureInfo.InvariantCulture);
        ulong last = only is null ? (ulong)Math.Max(20, Sessions) : first;
        for (ulong seed = first; seed <= last; seed++)
        {
            try
            {
                (int answered, bool isAlive) = Run(seed);
                good += answered;
                survived += isAlive ? 1 : 0;
            }
            catch (Exception e) when (e is not OutOfMemoryException)
            {
                throw new InvalidOperationException($"seed {seed}: {e.Message}", e);
            }
        }

        if (only is not null) return;
        Assert.True(good > 3 * (int)last, $"only {good} commands of {last} sessions were answered"); // they get somewhere
        Assert.InRange(survived, (int)last / 20, (int)last - 1); // some damage ends a session, some does not
    }

    private (int Answered, bool IsAlive) Run(ulong seed)
    {
        var random = new SeededRandom(seed);
        var loop = new SimLoop(seed * 31);
        var device = new MemoryDevice(4 << 20, loop);
        var unit = new LogicalUnit(loop, device, new LogicalUnitOptions { Uuid = new Guid(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11), SanitizeNanosMin = 1000 });
        var scsi = new ScsiTarget(loop, new ScsiTargetOptions { Name = Name });
        scsi.SetLun(0, unit);
        var options = new IscsiOptions
        {
            WindowCommands = 16, WindowBytes = 64 << 10, ReceiveBytes = 16 << 10, MaxRecvDataSegmentLength = 4096,
            PingAnswerNanos = 86_400_000_000_000, // nothing but the clock goes on between steps, and data that a step left out would end the session
        };
        var target = new IscsiTarget(loop, scsi, this, options);
        var ends = new List<Task<string>>();
        FuzzPeer victim = Connect(1, 1), one = Connect(2, 1);
        Assert.True(Login(victim, 0, seed % 2 == 0));
        Assert.True(Login(one, 0, seed % 3 == 0));
        List<FuzzPeer> links = [one];
        if (random.NextChance(0.3))
        {
            FuzzPeer two = Connect(2, 2);
            two.CmdSn = one.CmdSn;
            if (Login(two, one.Tsih, seed % 3 == 0)) links.Add(two);
        }

        var script = new FuzzScript(random, links);
        for (int i = 0; i < 40 && !one.HasEnded; i++)
        {
            script.Step();
            loop.RunUntil(() => false, random.NextChance(0.5) ? 40UL : 400UL);
            if (i % 10 == 5) Echo(victim, 0x7000 + (uint)i, random);
        }

        loop.RunUntil(() => one.HasEnded, 5_000);
        bool isAlive = !one.HasEnded;
        int answered = links.Sum(l => l.Answers.Values.Count(a => a.Opcode is IscsiOpcode.ScsiResponse or IscsiOpcode.DataIn));
        Echo(victim, 0x7100, random);
        foreach (FuzzPeer link in links) link.Close();
        Assert.True(loop.RunUntil(() => target.Sessions.Count == 1, 2_000_000), "the session does not end");
        Ask(victim);
        victim.Close();
        Assert.True(loop.RunUntil(() => ends.TrueForAll(e => e.IsCompleted), 2_000_000), "a connection hangs");
        Assert.True(loop.RunUntil(() => unit.TaskCount == 0 && loop.Buffers.LentCount == 0, 2_000_000), $"kept: {unit.TaskCount} tasks, {loop.Buffers.LentCount} buffers");
        Assert.Empty(target.Sessions);
        Assert.All(ends, e => Assert.Null(e.Exception));
        Assert.All((FuzzPeer[])[.. links, victim], l => Assert.Null(l.Fault));
        return (answered, isAlive);

        FuzzPeer Connect(ulong isid, ushort cid)
        {
            (SimConnection client, SimConnection server) = SimConnection.Pair(loop, 16 << 10);
            ends.Add(ServeAsync(loop, server, target, options).AsTask());
            return new FuzzPeer(loop, client, Name, isid, cid);
        }

        bool Login(FuzzPeer peer, ushort tsih, bool hasDigests)
        {
            Task<bool> login = peer.LoginAsync(tsih, hasDigests, random.NextChance(0.5));
            Assert.True(loop.RunUntil(() => login.IsCompleted));
            if (login.Result) _ = peer.ServeAsync();
            return login.Result;
        }

        void Echo(FuzzPeer peer, uint tag, SeededRandom dice)
        {
            var data = new byte[1 + dice.NextBelow(3000)];
            dice.Fill(data);
            peer.Send(b => new NopOutPdu(true, 0, tag, IscsiWire.NoTag, peer.CmdSn, 0).WriteTo(b, 0), data);
            Assert.True(peer.WaitFor(tag), $"the other session is not answered (ended: {peer.HasEnded})");
            Assert.Equal(data, peer.Answers[tag].Data);
        }

        // Whatever the damaged session left behind, INQUIRY passes it.
        void Ask(FuzzPeer peer)
        {
            var inquiry = new ScsiCommandPdu(false, true, true, false, TaskAttribute.Simple, 0, 0x7200, 96, peer.CmdSn++, 0);
            peer.Send(b => inquiry.WriteTo(b, [0x12, 0, 0, 0, 96, 0], 0), []);
            Assert.True(peer.WaitFor(0x7200), "the other session's INQUIRY is not answered");
            Assert.Equal(IscsiOpcode.DataIn, peer.Answers[0x7200].Opcode);
        }
    }

    private async ValueTask<string> ServeAsync(SimLoop loop, SimConnection server, IscsiTarget target, IscsiOptions options)
    {
        var login = new IscsiLogin(loop, server, this, options);
        return await login.RunAsync() is { } negotiated ? await target.ServeAsync(negotiated) : login.EndReason!;
    }
}

/// <summary>What a fuzzed session sends: one right PDU after the other, each with some chance of damage.</summary>
internal sealed class FuzzScript(SeededRandom random, List<FuzzPeer> links)
{
    private uint _tag = 100;

    public void Step()
    {
        FuzzPeer link = links[random.NextBelow(links.Count)];
        if (link.Asked.Count > 0 && random.NextChance(0.7))
        {
            AnswerR2T(link);
            return;
        }

        uint tag = random.NextChance(0.95) ? _tag++ : _tag - 1;
        bool isImmediate = random.NextChance(0.1);
        switch (random.NextBelow(12))
        {
            case < 4:
                Write(link, tag, isImmediate);
                break;
            case 4:
                Emit(link, isImmediate, b => new ScsiCommandPdu(isImmediate, true, true, false, Attribute(), 0, tag, 8192, links[0].CmdSn, 0)
                    .WriteTo(b, Cdb10(0x28, 16), 0), []);
                break;
            case < 8:
                Other(link, tag, isImmediate);
                break;
            case 8:
                Emit(link, isImmediate, b => new NopOutPdu(isImmediate, 0, tag, IscsiWire.NoTag, links[0].CmdSn, 0).WriteTo(b, 0), new byte[random.NextBelow(300)]);
                break;
            case 9:
                var function = (TaskFunction)(1 + random.NextBelow(6));
                Emit(link, isImmediate, b => new TaskManagementRequestPdu(isImmediate, function, 0, tag, _tag - 2, links[0].CmdSn, 0, links[0].CmdSn - 1).WriteTo(b), []);
                break;
            case 10:
                byte[] text = random.NextChance(0.5) ? "SendTargets=\0"u8.ToArray() : "MaxRecvDataSegmentLength=4096\0X-a=b\0"u8.ToArray();
                Emit(link, isImmediate, b => new TextRequestPdu(isImmediate, random.NextChance(0.8), false, tag, IscsiWire.NoTag, links[0].CmdSn, 0).WriteTo(b, 0), text);
                break;
            default:
                if (random.NextChance(0.9)) return;
                var reason = (IscsiLogoutReason)random.NextBelow(3);
                Emit(link, isImmediate, b => new LogoutRequestPdu(isImmediate, reason, tag, (ushort)(1 + random.NextBelow(3)), links[0].CmdSn, 0).WriteTo(b), []);
                break;
        }
    }

    private void Write(FuzzPeer link, uint tag, bool isImmediate)
    {
        int blocks = 1 + random.NextBelow(20), length = blocks * 512;
        var data = new byte[Math.Min(random.NextBelow(5) * 512, length)];
        bool isFinal = random.NextChance(0.6) || data.Length >= 2048;
        Emit(link, isImmediate, b => new ScsiCommandPdu(isImmediate, isFinal, false, true, Attribute(), 0, tag, (uint)length, links[0].CmdSn, 0)
            .WriteTo(b, Cdb10(0x2A, blocks), 0), data);
        if (isFinal || !random.NextChance(0.9)) return;
        var rest = new byte[Math.Max(0, Math.Min(2048, length) - data.Length)];
        Emit(link, true, b => new DataOutPdu(true, 0, tag, IscsiWire.NoTag, 0, 0, (uint)data.Length).WriteTo(b, 0), rest);
    }

    /// <summary>Any command with a list of its own, right or damaged.</summary>
    private void Other(FuzzPeer link, uint tag, bool isImmediate)
    {
        byte[] cdb = Convert.FromHexString(Scsi.ScsiFuzz.Examples[random.NextBelow(Scsi.ScsiFuzz.Examples.Length)]);
        if (random.NextChance(0.3)) Mutator.Mutate(random, cdb);
        bool isWrite = random.NextChance(0.5);
        var data = new byte[isWrite ? random.NextBelow(600) : 0];
        if (data.Length > 0 && random.NextChance(0.5)) random.Fill(data);
        uint expected = isWrite ? (uint)data.Length : (uint)random.NextBelow(5000);
        Emit(link, isImmediate, b => new ScsiCommandPdu(isImmediate, true, !isWrite, isWrite, Attribute(), 0, tag, expected, links[0].CmdSn, 0)
            .WriteTo(b, cdb.AsSpan(0, Math.Min(16, cdb.Length)), 0), data);
    }

    private void AnswerR2T(FuzzPeer link)
    {
        R2TPdu r2t = link.Asked[0];
        link.Asked.RemoveAt(0);
        int length = (int)Math.Min(r2t.LengthBytes, 4096);
        Emit(link, true, b => new DataOutPdu(true, 0, r2t.Tag, r2t.TransferTag, 0, 0, r2t.Offset).WriteTo(b, 0), new byte[length]);
    }

    /// <summary>Sends it, damaged or not; a TARGET COLD RESET is left out, since that may end the other session.</summary>
    private void Emit(FuzzPeer link, bool isImmediate, FuzzPeer.WriteBhs write, byte[] data)
    {
        bool isDamaged = random.NextChance(0.12), isCut = random.NextChance(0.01);
        if (data.Length > 0 && random.NextChance(0.1)) Mutator.Mutate(random, data);
        bool isReset = false;
        byte[] pdu = link.Pdu(
            write, data,
            bhs =>
            {
                byte[] lengths = bhs[4..8];
                if (isDamaged) Mutator.Mutate(random, bhs);
                // Wrong lengths end nearly every session at once; most damage leaves them right.
                if (isDamaged && random.NextChance(0.8)) lengths.CopyTo(bhs, 4);
                isReset = (bhs[0] & 0x3F) == (int)IscsiOpcode.TaskManagementRequest && (bhs[1] & 0x7F) == (int)TaskFunction.TargetColdReset;
            },
            damageDigests: random.NextChance(0.005));
        if (!isImmediate) links[0].CmdSn++;
        if (!isReset) link.SendRaw(isCut ? pdu[..random.NextBelow(pdu.Length)] : pdu);
        if (random.NextChance(0.02)) link.SendRaw(pdu);
    }

    private TaskAttribute Attribute() => random.NextChance(0.8) ? TaskAttribute.Simple : (TaskAttribute)random.NextBelow(5);

    private byte[] Cdb10(byte opcode, int blocks)
    {
        var cdb = new byte[10];
        cdb[0] = opcode;
        BinaryPrimitives.WriteUInt32BigEndian(cdb.AsSpan(2), (uint)random.NextBelow(512));
        BinaryPrimitives.WriteUInt16BigEndian(cdb.AsSpan(7), (ushort)blocks);
        return cdb;
    }
}
