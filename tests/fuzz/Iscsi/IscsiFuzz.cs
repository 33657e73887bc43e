using System.Buffers;
using System.Globalization;
using System.Text;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Fuzz.Iscsi;

/// <summary>
/// Damaged iSCSI: text, logins and whole sessions. An answer or an end, never an exception, nothing kept, no invariant
/// broken. Inputs: BLOCKSERVER_FUZZ_INPUTS (default 500,000; a hundredth of it for whole sessions).
/// </summary>
public sealed class IscsiFuzz : IIscsiTargets
{
    private const string Target = "iqn.2026-11.org.example:disk";
    private const string Initiator = "iqn.2026-11.org.example:client";

    private static readonly int Inputs =
        int.TryParse(Environment.GetEnvironmentVariable("BLOCKSERVER_FUZZ_INPUTS"), CultureInfo.InvariantCulture, out int inputs)
            ? inputs : 500_000;

    private readonly IscsiAuthentication? _authentication =
        new(new Dictionary<string, byte[]> { ["alice"] = "a secret of some length"u8.ToArray() });

    private bool _isGuarded;

    public IscsiAuthentication? Discovery => _isGuarded ? _authentication : null;

    public IscsiLookup Find(string targetName, string initiatorName, string peer) => targetName == Target
        ? new(IscsiLoginStatus.Success, new IscsiTargetEntry { Name = Target, Authentication = _isGuarded ? _authentication : null })
        : new(IscsiLoginStatus.NotFound);

    public IReadOnlyList<IscsiListing> List(string initiatorName, string? user, string peer) => [new(Target, ["127.0.0.1:3260,1"])];

    [Fact]
    public void Texts()
    {
        byte[] golden = Encoding.UTF8.GetBytes(
            $"InitiatorName={Initiator}\0TargetName={Target}\0MaxBurstLength=4096\0CHAP_C=0x0011223344\0X-a.b=1,2,3\0");
        for (int i = 0; i < Inputs; i++)
        {
            var random = new SeededRandom((ulong)i);
            byte[] text = golden[..random.NextBelow(golden.Length + 1)];
            Mutator.Mutate(random, text);
            var pairs = new List<(string Key, string Value)>();
            if (IscsiText.TryRead(text, pairs) is not null) continue;
            var again = new ArrayBufferWriter<byte>();
            foreach ((string key, string value) in pairs)
            {
                Assert.InRange(key.Length, 1, IscsiText.KeyBytesMax);
                IscsiText.Write(again, key, value);
                IscsiName.TryNormalize(value, out _);
                Chap.TryRead(value);
                OperationalKeys.Take(key, value, new IscsiOptions(), new IscsiParameters(), i % 2 == 0, i % 3 == 0, out _);
            }

            var pairsAgain = new List<(string Key, string Value)>();
            Assert.Null(IscsiText.TryRead(again.WrittenSpan, pairsAgain));
            Assert.Equal(pairs, pairsAgain);
        }
    }

    [Fact]
    public void Logins()
    {
        int agreed = 0;
        var options = new IscsiOptions();
        for (int i = 0; i < Inputs / 5; i++)
        {
            var random = new SeededRandom((ulong)i);
            _isGuarded = i % 2 == 0;
            var machine = new LoginMachine(this, options, random, "fuzz");
            var output = new ArrayBufferWriter<byte>();
            LoginVerdict verdict = LoginVerdict.Continue;
            for (int round = 0; round < 4 && verdict == LoginVerdict.Continue; round++)
            {
                (byte[] bhs, byte[] data) = LoginRound(round, _isGuarded);
                if (random.NextChance(0.4)) Mutator.Mutate(random, bhs);
                if (random.NextChance(0.4)) Mutator.Mutate(random, data);
                output.Clear();
                verdict = machine.OnPdu(bhs, data, output);
                Assert.True(output.WrittenCount % 4 == 0 && output.WrittenCount <= 48 + 8192);
                if (verdict == LoginVerdict.Continue) Assert.NotEqual(0, output.WrittenCount);
            }

            if (verdict != LoginVerdict.Agreed) continue;
            agreed++;
            Assert.False(_isGuarded, $"seed {i}: in without a proof");
        }

        Assert.NotEqual(0, agreed);
    }

    [Fact]
    public void Sessions()
    {
        _isGuarded = false;
        int executed = 0;
        for (int i = 0; i < Inputs / 100; i++)
        {
            var random = new SeededRandom((ulong)i);
            var loop = new SimLoop((ulong)i);
            var options = new IscsiOptions { WindowBytes = 1 << 18, ReceiveBytes = 16 << 10 };
            var scsi = new FuzzTarget(loop);
            var target = new IscsiTarget(loop, scsi, this, options);
            (SimConnection client, SimConnection server) = SimConnection.Pair(loop);
            Task<string> end = ServeAsync(loop, server, target, options).AsTask();
            byte[] bytes = Conversation(random);
            var batch = new SendBatch();
            batch.Add(bytes);
            Task<int> sending = client.SendAsync(batch).AsTask();
            Task reading = ReadAllAsync(client);
            loop.RunUntil(() => sending.IsCompleted, 100_000);
            loop.Run(loop.DelayAsync(1_000_000_000));
            client.Close();
            Assert.True(loop.RunUntil(() => end.IsCompleted && reading.IsCompleted, 1_000_000), $"seed {i} hangs");
            Assert.Null(end.Exception);
            Assert.True(loop.RunUntil(() => target.Sessions.Count == 0 && loop.Buffers.LentCount == 0, 1_000_000), $"seed {i} keeps something");
            Assert.Equal(0, scsi.Nexuses);
            executed += scsi.Executed;
        }

        Assert.InRange(executed, Inputs / 100, int.MaxValue); // most conversations get somewhere
    }

    private static async Task ReadAllAsync(SimConnection client)
    {
        var target = new byte[65536];
        while (await client.ReceiveAsync(target) > 0)
        {
        }
    }

    private async ValueTask<string> ServeAsync(SimLoop loop, SimConnection server, IscsiTarget target, IscsiOptions options)
    {
        var login = new IscsiLogin(loop, server, this, options);
        IscsiNegotiated? negotiated = await login.RunAsync();
        if (negotiated is null) return login.EndReason!;
        return negotiated.Login.IsDiscovery
            ? await new IscsiTarget(loop, null, this, options).ServeAsync(negotiated) : await target.ServeAsync(negotiated);
    }

    private static (byte[] Bhs, byte[] Data) LoginRound(int round, bool isGuarded)
    {
        string text = round switch
        {
            0 => $"InitiatorName={Initiator}\0TargetName={Target}\0AuthMethod={(isGuarded ? "CHAP" : "None")}\0",
            1 when isGuarded => "CHAP_A=7,5\0",
            2 when isGuarded => "CHAP_N=alice\0CHAP_R=0x00112233\0CHAP_I=1\0CHAP_C=0x01\0",
            _ => "HeaderDigest=None\0MaxBurstLength=65536\0FirstBurstLength=4096\0InitialR2T=No\0",
        };
        byte[] data = Encoding.UTF8.GetBytes(text);
        var bhs = new byte[48];
        bool isSecurity = isGuarded || round == 0;
        new LoginRequestPdu(
            true, false, isSecurity ? IscsiStage.Security : IscsiStage.Operational,
            isSecurity ? IscsiStage.Operational : IscsiStage.FullFeature, 0, 1, 0, 1, 0, 1, 0).WriteTo(bhs, data.Length);
        return (bhs, data);
    }

    /// <summary>A login and then twenty PDUs, some damaged, some repeated, some left out.</summary>
    private static byte[] Conversation(SeededRandom random)
    {
        List<byte> all = [];
        for (int round = 0; round < 2; round++)
        {
            (byte[] bhs, byte[] data) = LoginRound(round, false);
            Append(bhs, data);
        }

        uint cmdSn = 1;
        for (int i = 0; i < 20; i++)
        {
            var bhs = new byte[48];
            byte[] data = [];
            uint tag = random.NextChance(0.8) ? 100 + (uint)i : (uint)random.NextBelow(8);
            bool isImmediate = random.NextChance(0.1);
            switch (random.NextBelow(9))
            {
                case 0 or 1:
                    data = new byte[random.NextBelow(5) * 512];
                    bool isFinal = random.NextChance(0.9);
                    uint offered = random.NextChance(0.8) ? (uint)data.Length : 2048u << random.NextBelow(6);
                    new ScsiCommandPdu(isImmediate, isFinal, false, true, (TaskAttribute)random.NextBelow(5), 0, tag, offered, cmdSn, 0)
                        .WriteTo(bhs, [0x2A, 0, 0, 0, 0, 0, 0, 0, (byte)random.NextBelow(64), 0], data.Length);
                    break;
                case 2:
                    new ScsiCommandPdu(isImmediate, true, true, false, (TaskAttribute)random.NextBelow(5), 0, tag, 16384, cmdSn, 0)
                        .WriteTo(bhs, [0x28, 0, 0, 0, 0, 0, 0, 0, (byte)random.NextBelow(64), 0], 0);
                    break;
                case 3 or 4:
                    if (random.NextChance(0.8)) continue;
                    data = new byte[random.NextBelow(9) * 512];
                    uint transferTag = random.NextChance(0.5) ? IscsiWire.NoTag : (uint)random.NextBelow(4);
                    new DataOutPdu(random.NextChance(0.5), 0, tag, transferTag, 0, (uint)random.NextBelow(3), (uint)random.NextBelow(4) * 512)
                        .WriteTo(bhs, data.Length);
                    break;
                case 5:
                    data = new byte[random.NextBelow(100)];
                    new NopOutPdu(isImmediate, 0, tag, IscsiWire.NoTag, cmdSn, 0).WriteTo(bhs, data.Length);
                    break;
                case 6:
                    new TaskManagementRequestPdu(random.NextChance(0.8), (TaskFunction)random.NextBelow(10), 0, tag, (uint)random.NextBelow(8), cmdSn, 0, 1)
                        .WriteTo(bhs);
                    break;
                case 7:
                    data = "SendTargets=All\0MaxRecvDataSegmentLength=512\0"u8.ToArray();
                    new TextRequestPdu(isImmediate, random.NextChance(0.7), random.NextChance(0.2), tag, IscsiWire.NoTag, cmdSn, 0).WriteTo(bhs, data.Length);
                    break;
                default:
                    if (random.NextChance(0.7)) continue;
                    new LogoutRequestPdu(isImmediate, (IscsiLogoutReason)random.NextBelow(3), tag, (ushort)random.NextBelow(2), cmdSn, 0).WriteTo(bhs);
                    break;
            }

            bool isNumbered = (bhs[0] & 0x40) == 0 && (bhs[0] & 0x3F) != (int)IscsiOpcode.DataOut;
            if (isNumbered && random.NextChance(0.9)) cmdSn++;
            if (random.NextChance(0.1)) Mutator.Mutate(random, bhs);
            Append(bhs, data);
        }

        return [.. all];

        void Append(byte[] bhs, byte[] data)
        {
            all.AddRange(bhs);
            all.AddRange(data);
            all.AddRange(new byte[IscsiWire.PadOf(data.Length)]);
        }
    }

    /// <summary>Reads and writes nothing, some time later, and checks what the transport promises.</summary>
    private sealed class FuzzTarget(SimLoop loop) : IScsiTarget
    {
        public int Nexuses { get; private set; }

        public int Executed { get; private set; }

        public void AddNexus(ScsiNexus nexus) => Nexuses++;

        public void RemoveNexus(ScsiNexus nexus) => Nexuses--;

        public ScsiPlan Plan(ScsiCommand command)
        {
            int bytes = command.Cdb[8] * 512;
            return command.Cdb[0] switch
            {
                0x2A => new ScsiPlan(bytes, 0, command.Cdb[5] * 512 % 4096, false),
                0x28 => new ScsiPlan(0, bytes, 0, false),
                _ => new ScsiPlan(0, 0, 0, true),
            };
        }

        public async ValueTask<bool> ExecuteAsync(ScsiCommand command)
        {
            Executed++;
            ScsiPlan plan = Plan(command);
            Check.That(command.OutLength <= plan.OutBytes && command.DataOut.Length == command.OutLength);
            if (loop.Random.NextChance(0.5)) await loop.DelayAsync(loop.Random.NextBelow(5_000_000UL));
            if (loop.Random.NextChance(0.1)) return false;
            if (plan.InBytesMax == 0) return true;
            command.InBuffer = await loop.Buffers.RentAsync(plan.InBytesMax);
            command.InLength = plan.InBytesMax;
            return true;
        }

        public async ValueTask<TaskFunctionResponse> ManageAsync(ScsiNexus nexus, TaskFunction function, ulong lun, uint tag)
        {
            await loop.DelayAsync(loop.Random.NextBelow(5_000_000UL));
            return TaskFunctionResponse.Complete;
        }
    }
}
