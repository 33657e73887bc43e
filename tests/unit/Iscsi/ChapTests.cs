using System.Globalization;
using BlockServer.Protocols.Iscsi;
using Xunit;
using static BlockServer.Tests.Unit.Iscsi.IscsiWorld;

namespace BlockServer.Tests.Unit.Iscsi;

/// <summary>CHAP: right, wrong and reflected.</summary>
public sealed class ChapTests
{
    private static readonly byte[] Secret = "correct horse battery"u8.ToArray();
    private static readonly byte[] MutualSecret = "the other direction"u8.ToArray();

    [Theory]
    [InlineData(ChapAlgorithm.Md5, "f06a31bdd6ae6162f265543c5fc9fe37")]
    [InlineData(ChapAlgorithm.Sha1, "985452945cdee43c986a5802b53c6627d4598e7a")]
    [InlineData(ChapAlgorithm.Sha256, "b9270e026ec7acbfe5fb0d37b9c04319aee75b09270b27744fc5a6c37ad074be")]
    [InlineData(ChapAlgorithm.Sha3, "8d6190a0e241f415f04937491b1ec5eff7e3716a1c3806a61634a68daaba67c9")]
    public void Responses_are_these(ChapAlgorithm algorithm, string hex)
    {
        if (!Chap.IsSupported(algorithm)) return;
        Assert.Equal("0x" + hex, Chap.Text(Chap.Respond(algorithm, 0x2A, "secret"u8, [1, 2, 3, 4])));
    }

    [Theory]
    [InlineData("5", ChapAlgorithm.Md5)]
    [InlineData("6", ChapAlgorithm.Sha1)]
    [InlineData("7", ChapAlgorithm.Sha256)]
    [InlineData("8", ChapAlgorithm.Sha3)]
    [InlineData("5,6,7,99", ChapAlgorithm.Sha256)]
    public void Both_sides_prove_themselves(string offer, ChapAlgorithm chosen)
    {
        if (!Chap.IsSupported(chosen)) return;
        IscsiWorld world = Guarded();
        IscsiClient client = world.Connect();
        byte[] challenge = Begin(client, offer, chosen, out byte id);
        byte[] ours = Pattern(40, 3);
        LoginResponsePdu response = client.LoginRound(IscsiStage.Security, IscsiStage.Operational, Text(
            "CHAP_N=alice", "CHAP_R=" + Chap.Text(Chap.Respond(chosen, id, Secret, challenge)),
            "CHAP_I=200", "CHAP_C=0b" + Convert.ToBase64String(ours)));
        Assert.Equal((IscsiLoginStatus.Success, true), (response.Status, response.IsTransit));
        Assert.Equal("target", client.Agreed["CHAP_N"]);
        Assert.Equal(Chap.Text(Chap.Respond(chosen, 200, MutualSecret, ours)), client.Agreed["CHAP_R"]);
        response = client.LoginRound(IscsiStage.Operational, IscsiStage.FullFeature, []);
        Assert.Equal(IscsiLoginStatus.Success, response.Status);
        Assert.Equal("alice", world.Target.Sessions[response.Tsih].User);
    }

    [Fact]
    public void A_wrong_secret_and_an_unknown_user_are_answered_alike_and_late()
    {
        var answers = new List<string>();
        foreach ((string user, byte[] secret) in new[] { ("alice", "wrong secret"u8.ToArray()), ("mallory", Secret) })
        {
            IscsiWorld world = Guarded();
            IscsiClient client = world.Connect();
            byte[] challenge = Begin(client, "7", ChapAlgorithm.Sha256, out byte id);
            ulong began = world.Loop.NowNanos;
            LoginResponsePdu response = client.LoginRound(IscsiStage.Security, IscsiStage.Operational, Text(
                "CHAP_N=" + user, "CHAP_R=" + Chap.Text(Chap.Respond(ChapAlgorithm.Sha256, id, secret, challenge))));
            Assert.Equal(IscsiLoginStatus.AuthenticationFailure, response.Status);
            Assert.InRange(world.Loop.NowNanos - began, 1_000_000_000UL, 2_000_000_000UL);
            answers.Add(client.End());
            Assert.True(client.LoginOfServer.WereCredentialsWrong);
        }

        Assert.Equal(answers[0], answers[1]);
    }

    [Fact]
    public void A_reflected_challenge_closes()
    {
        IscsiClient client = Guarded().Connect();
        byte[] challenge = Begin(client, "7", ChapAlgorithm.Sha256, out byte id);
        client.LoginRound(IscsiStage.Security, IscsiStage.Operational, Text(
            "CHAP_N=alice", "CHAP_R=" + Chap.Text(Chap.Respond(ChapAlgorithm.Sha256, id, Secret, challenge)),
            $"CHAP_I={id}", "CHAP_C=" + Chap.Text(challenge)));
        Assert.Equal("our challenge came back", client.End());
    }

    [Fact]
    public void Challenges_are_long_and_never_the_same()
    {
        IscsiWorld world = Guarded();
        var seen = new HashSet<string>();
        for (int i = 0; i < 20; i++)
        {
            byte[] challenge = Begin(world.Connect(), "5", ChapAlgorithm.Md5, out _);
            Assert.Equal(32, challenge.Length);
            Assert.True(seen.Add(Convert.ToHexString(challenge)));
        }
    }

    [Fact]
    public void Nobody_gets_past_authentication()
    {
        string[] names = ["InitiatorName=" + InitiatorName, "TargetName=" + TargetName];
        Assert.Equal(IscsiLoginStatus.AuthenticationFailure, Guarded().Connect().TryLogin().Status);
        Assert.Equal(
            IscsiLoginStatus.AuthenticationFailure,
            Guarded().Connect().LoginRound(IscsiStage.Security, IscsiStage.FullFeature, Text(names)).Status);
        Assert.Equal(
            IscsiLoginStatus.AuthenticationFailure,
            Guarded().Connect().LoginRound(IscsiStage.Security, IscsiStage.Operational, Text([.. names, "AuthMethod=None"])).Status);

        // The method is chosen, the proof is left out.
        foreach (string[] next in new string[][] { [], ["CHAP_N=alice"], ["CHAP_R=0x00", "CHAP_N=alice", "CHAP_I=1"], ["AuthMethod=CHAP2"], ["CHAP_R=0x00", "CHAP_N=alice"] })
        {
            IscsiClient client = Guarded().Connect();
            client.LoginRound(IscsiStage.Security, IscsiStage.Operational, Text([.. names, "AuthMethod=CHAP"]));
            Assert.Equal("CHAP", client.Agreed["AuthMethod"]);
            Assert.NotEqual(IscsiLoginStatus.Success, client.LoginRound(IscsiStage.Security, IscsiStage.FullFeature, Text(next)).Status);
        }

        IscsiWorld noAlgorithm = Guarded();
        noAlgorithm.Authentication = new IscsiAuthentication(new Dictionary<string, byte[]> { ["alice"] = Secret }) { Algorithms = [ChapAlgorithm.Sha256] };
        IscsiClient old = noAlgorithm.Connect();
        old.LoginRound(IscsiStage.Security, null, Text([.. names, "AuthMethod=CHAP"]));
        Assert.Equal(IscsiLoginStatus.AuthenticationFailure, old.LoginRound(IscsiStage.Security, null, Text("CHAP_A=5")).Status);

        // Who insists on CHAP is not let in without it; who asks for mutual CHAP that is not there neither.
        Assert.Equal(
            IscsiLoginStatus.AuthenticationFailure,
            new IscsiWorld().Connect().LoginRound(IscsiStage.Security, null, Text([.. names, "AuthMethod=CHAP"])).Status);
        IscsiClient wishful = noAlgorithm.Connect();
        byte[] challenge = Begin(wishful, "7", ChapAlgorithm.Sha256, out byte id);
        Assert.Equal(IscsiLoginStatus.AuthenticationFailure, wishful.LoginRound(IscsiStage.Security, IscsiStage.Operational, Text(
            "CHAP_N=alice", "CHAP_R=" + Chap.Text(Chap.Respond(ChapAlgorithm.Sha256, id, Secret, challenge)), "CHAP_I=1", "CHAP_C=0x01")).Status);
    }

    [Fact]
    public void Discovery_has_its_own_users()
    {
        var world = new IscsiWorld { Discovery = new IscsiAuthentication(new Dictionary<string, byte[]> { ["alice"] = Secret }) };
        Assert.Equal(IscsiLoginStatus.AuthenticationFailure, world.Connect().TryLogin("SessionType=Discovery").Status);
        Assert.Equal(IscsiLoginStatus.Success, world.Connect().TryLogin().Status);
    }

    [Fact]
    public void One_secret_never_serves_both_directions() =>
        Assert.Throws<ArgumentException>(() => new IscsiAuthentication(new Dictionary<string, byte[]> { ["alice"] = Secret }, "target", [.. Secret]));

    [Theory]
    [InlineData("0x00ff", "00FF")]
    [InlineData("0bAP8=", "00FF")]
    [InlineData("0x", null)]
    [InlineData("0x0", null)]
    [InlineData("0xzz", null)]
    [InlineData("0b!", null)]
    [InlineData("17", null)]
    [InlineData("", null)]
    public void Binary_values_are_read(string text, string? hex) =>
        Assert.Equal(hex, Chap.TryRead(text) is { } bytes ? Convert.ToHexString(bytes) : null);

    [Fact]
    public void A_session_is_replaced_only_by_who_has_proved_itself()
    {
        IscsiWorld world = Guarded();
        IscsiClient held = world.Connect();
        LogIn(held, Secret);
        foreach (byte[] wrong in new byte[][] { MutualSecret, [1] })
        {
            IscsiClient thief = world.Connect(); // same name, same ISID
            byte[] challenge = Begin(thief, "7", ChapAlgorithm.Sha256, out byte id);
            LoginResponsePdu refused = thief.LoginRound(IscsiStage.Security, IscsiStage.Operational, Text(
                "CHAP_N=alice", "CHAP_R=" + Chap.Text(Chap.Respond(ChapAlgorithm.Sha256, id, wrong, challenge))));
            Assert.Equal(IscsiLoginStatus.AuthenticationFailure, refused.Status);
        }

        Assert.Equal(Protocols.Iscsi.Scsi.ScsiStatus.Good, held.Finish(held.Command([0, 0, 0, 0, 0, 0])).Status);
        LogIn(world.Connect(), Secret);
        Assert.Equal("the session was reinstated", held.End());

        static void LogIn(IscsiClient client, byte[] secret)
        {
            byte[] challenge = Begin(client, "7", ChapAlgorithm.Sha256, out byte id);
            client.LoginRound(IscsiStage.Security, IscsiStage.Operational, Text(
                "CHAP_N=alice", "CHAP_R=" + Chap.Text(Chap.Respond(ChapAlgorithm.Sha256, id, secret, challenge))));
            Assert.Equal(IscsiLoginStatus.Success, client.LoginRound(IscsiStage.Operational, IscsiStage.FullFeature, []).Status);
        }
    }

    private static IscsiWorld Guarded() => new()
    {
        Authentication = new IscsiAuthentication(new Dictionary<string, byte[]> { ["alice"] = Secret }, "target", MutualSecret),
    };

    private static byte[] Begin(IscsiClient client, string offer, ChapAlgorithm chosen, out byte id)
    {
        client.LoginRound(IscsiStage.Security, null, Text(
            "InitiatorName=" + InitiatorName, "TargetName=" + TargetName, "AuthMethod=CHAP"));
        client.LoginRound(IscsiStage.Security, null, Text("CHAP_A=" + offer));
        Assert.Equal(((int)chosen).ToString(CultureInfo.InvariantCulture), client.Agreed["CHAP_A"]);
        id = byte.Parse(client.Agreed["CHAP_I"], CultureInfo.InvariantCulture);
        return Chap.TryRead(client.Agreed["CHAP_C"])!;
    }
}
